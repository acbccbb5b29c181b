"""The commands that ask: a table on a terminal, JSON lines in pipes, and what the exit status says."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from serving.server import TritonServer

PROJECT = Path(__file__).resolve().parents[2]


def shelfwise(*arguments: str, given: str = "", url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROJECT / "shelfwise.py", *arguments, "--url", url]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)


def test_lines_in_a_pipe(contract_server: TritonServer) -> None:
    asked = shelfwise("categorize", "--title", "[bold]", "-k", "2", url=contract_server.url)
    assert asked.returncode == 0
    assert [line.split("  ", 1)[-1] for line in asked.stdout.splitlines()[:2]] == ["A > [bold]", "A > B"]
    assert asked.stdout.splitlines()[2].startswith("neighbour_kl 0.")


def test_table_on_a_terminal(contract_server: TritonServer) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, PROJECT / "shelfwise.py", "categorize", "--title", "[bold]", "-k", "2", "--url"]
    subprocess.run([*command, contract_server.url], stdout=terminal, check=True, timeout=120)
    os.close(terminal)
    printed = b""
    try:
        while chunk := os.read(controller, 4096):
            printed += chunk
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    assert "━┳━" in printed.decode()
    assert "A > [bold]" in printed.decode()


def test_json_lines_come_back_in_order_with_their_ids(contract_server: TritonServer, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"123")
    items = [{"id": 1, "title": "a"}, {"title": "ä", "image": str(image)}, {"id": "x"}, {"id": 2, "title": 3}]
    lines = [json.dumps(item) for item in items] + ["", "{", "7", json.dumps({"id": None, "title": "z"})]
    asked = shelfwise("categorize", "--json", "-k", "1", given="\n".join(lines), url=contract_server.url)
    assert asked.returncode == 1
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer.get("id") for answer in answers] == [1, None, "x", 2, None, None, None]
    assert [answer["categories"][0]["label"] for answer in answers if "categories" in answer] == [
        "A > a", "A > ä", "A > z",
    ]  # fmt: skip
    assert answers[1]["categories"][0]["id"] == 3
    assert "both empty" in answers[2]["error"]
    assert "title must be text, not int" in answers[3]["error"]
    assert "not a JSON object: {" in answers[4]["error"]
    assert "not a JSON object: 7" in answers[5]["error"]


def test_json_of_products_and_their_colours(contract_server: TritonServer, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"123")
    products = [{"images": [str(image)], "labels": ["a", "b"]}, {"images": None, "labels": ["a"]}]
    given = "\n".join(json.dumps(product) for product in products)
    asked = shelfwise("match-colours", "--json", "--one-to-one", given=given, url=contract_server.url)
    matched, refused = map(json.loads, asked.stdout.splitlines())
    assert matched["matches"][0]["label"] == "a"
    assert len(matched["matches"][0]["probabilities"]) == 2
    assert "images must be a sequence" in refused["error"]
    assert asked.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["categorize", "--title", "a", "-k", "1"], 0, ""),
        (["categorize", "--title", "a", "-k", "4"], 1, "error: k is 4, but this server returns 3 categories"),
        (["categorize"], 1, "error: image and title are both empty"),
        (["categorize", "--title", "a", "--header", "x"], 1, "--header wants KEY=VALUE"),
        (["categorize", "-k", "two"], 2, "Usage"),
        (["match-colours"], 2, "give photos and --labels"),
    ],
)
def test_exit_status(contract_server: TritonServer, arguments: list[str], status: int, text: str) -> None:
    asked = shelfwise(*arguments, url=contract_server.url)
    assert asked.returncode == status
    assert text in asked.stderr


def test_exit_status_without_a_server() -> None:
    for more in ([], ["--json"]):
        asked = shelfwise("categorize", "--title", "a", "--timeout", "0.3", *more, url="127.0.0.1:1")
        assert asked.returncode == 3
        assert asked.stderr.startswith("error: 127.0.0.1:1: ")
    asked = shelfwise("categorize", "--json", "--timeout", "0.3", given='{"title": "a"}\n' * 9, url="127.0.0.1:1")
    assert asked.returncode == 3
    assert [json.loads(line)["status"] for line in asked.stdout.splitlines()] == ["UNAVAILABLE"] * 9
