"""Every script of examples/ is run as its first lines say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pyarrow.parquet as pq
import pytest

from client import ShelfwiseClient
from serving.addresses import free_ports
from serving.server import TritonServer
from tests.triton_state import wait_for

PROJECT = Path(__file__).resolve().parents[2]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_notebook_shows_the_products_in_doubt(contract_server: TritonServer, sample_feed: Path) -> None:
    shown = run("examples/notebook.py", sample_feed, contract_server.url)
    assert shown.returncode == 0, shown.stderr
    doubts = [float(line.split()[1]) for line in shown.stdout.splitlines()]
    assert len(doubts) == 10
    assert doubts == sorted(doubts, reverse=True)


def test_owner_gets_a_row_for_every_product(contract_server: TritonServer, sample_feed: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.parquet"
    written = run("examples/catalogue_owner.py", sample_feed, answers, "--url", contract_server.url)
    assert written.returncode == 0, written.stderr
    assert "400 products, 0 failed" in written.stderr
    table = pq.read_table(answers)
    titles = pq.read_table(sample_feed)
    assert table["id"].to_pylist() == titles["id"].to_pylist()
    assert table["category"].to_pylist() == [f"A > {title}" for title in titles["title"].to_pylist()]
    gone = run("examples/catalogue_owner.py", sample_feed, tmp_path / "none.parquet", "--url", "127.0.0.1:1")
    assert gone.returncode != 0
    assert not (tmp_path / "none.parquet").exists()


@pytest.fixture
def service(contract_server: TritonServer) -> Iterator[str]:
    """The web service in a process of its own."""
    (port,) = free_ports("127.0.0.1", 1)
    command = [sys.executable, "-m", "uvicorn", "examples.web_service:app", "--port", str(port), "--log-level", "error"]
    environment = os.environ | {"SHELFWISE_URL": contract_server.url}
    with subprocess.Popen(command, cwd=PROJECT, env=environment) as process:
        url = f"http://127.0.0.1:{port}/categorize"

        def answers() -> bool:
            try:
                urllib.request.urlopen(url, timeout=5)
            except HTTPError:
                return True  # it wants POST
            except OSError:
                return False
            return True

        wait_for(answers, seconds=60)
        yield url
        process.terminate()


def test_web_service_answers_and_says_whose_fault_it_is(service: str, contract_server: TritonServer) -> None:
    with urllib.request.urlopen(f"{service}?title=a%20shoe", data=b"image", timeout=30) as answer:
        found = json.load(answer)
    with ShelfwiseClient(contract_server.url) as client:
        expected = client.categorize(b"image", "a shoe", k=3).to_dict()
    assert found == json.loads(json.dumps(expected))
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(service, data=b"", timeout=30)
    assert refused.value.code == 400
    assert "both empty" in json.load(refused.value)["error"]
