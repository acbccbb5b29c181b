"""The ensemble `match_text_image` of an exported release, asked over gRPC and through client and command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import shelfwise
from catalogue.images import decode_image
from client import ShelfwiseClient
from models.tokenizer import encode
from serving.server import TritonServer
from tests.serving.conftest import bytes_input, connect
from training.match_text_image import MATCHER, MatchBundle


@pytest.fixture(scope="module")
def server(start_server: Callable[..., TritonServer], match_repository: Path) -> TritonServer:
    return start_server(match_repository)  # ready: every readiness request was answered


@pytest.fixture(scope="module")
def client(server: TritonServer) -> InferenceServerClient:
    return connect(server)


@pytest.fixture(scope="module")
def bundle(match_bundle: Path) -> MatchBundle:
    return MATCHER.load(match_bundle)


def ask(client: InferenceServerClient, rows: list[tuple[bytes, bytes, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    images, titles, queries = (list(column) for column in zip(*rows, strict=True))
    inputs = [bytes_input("image", images), bytes_input("title", titles), bytes_input("query", queries)]
    result = client.infer("match_text_image", inputs, client_timeout=60)
    return result.as_numpy("probability")[:, 0], result.as_numpy("text_cut")[:, 0]


def refusal(client: InferenceServerClient, row: tuple[bytes, bytes, bytes]) -> str:
    with pytest.raises(InferenceServerException) as raised:
        ask(client, [row])
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return raised.value.message()


@torch.no_grad()
def in_torch(bundle: MatchBundle, image: bytes, title: str, query: str) -> float:
    """By the network as it was trained, and without a query's tokens where there is none."""
    patches = bundle.config.fashionbert.patches
    pixels = torch.from_numpy(decode_image(image, patches.height, patches.width))[None]
    ids, mask = (torch.from_numpy(array) for array in encode(bundle.tokenizer, [title]))
    asked = [torch.from_numpy(array) for array in encode(bundle.tokenizer, [query])] if query else []
    return float(torch.sigmoid(bundle.model.match(bundle.model.patches(pixels), ids, mask, *asked)))


def real_rows(bundle: MatchBundle) -> list[tuple[bytes, str, str]]:
    first, second = bundle.samples[:2]
    words = " ".join(first.title.split()[-2:])
    return [
        (first.images[0], first.title, ""),
        (first.images[0], second.title, ""),
        (second.images[0], second.title, words),
        (second.images[0], "", words),
    ]


def test_answers_are_those_of_the_network(client: InferenceServerClient, bundle: MatchBundle) -> None:
    rows = real_rows(bundle)
    expected = [in_torch(bundle, *row) for row in rows]
    found, cut = ask(client, [(image, title.encode(), query.encode()) for image, title, query in rows])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not cut.any()
    alone = [ask(client, [(image, title.encode(), query.encode())])[0][0] for image, title, query in rows]
    np.testing.assert_allclose(alone, found, atol=1e-5, err_msg="a row depends on its neighbours")
    assert len(set(np.round(expected, 6))) > 2, "texts and queries make a difference"


def test_a_text_that_is_too_long_is_cut_and_the_answer_says_so(
    client: InferenceServerClient, bundle: MatchBundle
) -> None:
    image, title, _ = real_rows(bundle)[0]
    long = "blue " * 200
    _, cut = ask(client, [(image, long.encode(), b""), (image, title.encode(), long.encode()), (image, b"blue", b"")])
    assert cut.tolist() == [True, True, False]
    megabyte = ask(client, [(image, b"shirt " * 200_000, b"")])
    assert megabyte[1].tolist() == [True]


def test_rows_that_cannot_be_answered_are_refused(client: InferenceServerClient, bundle: MatchBundle) -> None:
    image = bundle.samples[0].images[0]
    assert "image is empty" in refusal(client, (b"", b"title", b""))
    assert "title and its query are both empty" in refusal(client, (image, b" \n", b""))
    assert "query is not valid UTF-8" in refusal(client, (image, b"title", b"\xff"))
    assert "title is not valid UTF-8" in refusal(client, (image, b"\xff", b"query"))
    assert "image" in refusal(client, (b"no image", b"title", b""))


def test_a_photo_with_many_titles_is_answered_as_one_by_one(server: TritonServer, bundle: MatchBundle) -> None:
    """A thousand in one call, in requests of at most 128."""
    image = bundle.samples[0].images[0]
    titles = [sample.title for sample in bundle.samples if sample.title]
    titles = [f"{titles[number % len(titles)]} {number}" for number in range(999)] + ["blue " * 200]
    with ShelfwiseClient(server.url, timeout=120) as client:
        many = client.match_texts(image, titles, "shoe")
        chosen = [0, 1, 127, 128, 640, 999]
        alone = [client.match_text_image(titles[place], image, "shoe") for place in chosen]
    assert len(many) == 1000
    assert [many[place].probability for place in chosen] == pytest.approx([one.probability for one in alone], abs=1e-4)
    assert [answer.text_cut for answer in many] == [False] * 999 + [True]


def test_titles_of_one_request_have_a_limit_and_faults_their_place(
    client: InferenceServerClient, bundle: MatchBundle
) -> None:
    image = np.array([[bundle.samples[0].images[0]]], np.object_)

    def refused(titles: list[bytes]) -> str:
        inputs = [bytes_input("image", image[0].tolist()), bytes_input("query", [b""])]
        title = InferInput("title", [1, len(titles)], "BYTES")
        title.set_data_from_numpy(np.array([titles], np.object_))
        with pytest.raises(InferenceServerException) as raised:
            client.infer("match_text_image", [*inputs, title], client_timeout=60)
        assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
        return raised.value.message()

    assert "129 titles in one request; at most 128" in refused([b"shoe"] * 129)
    assert "title 2 is not valid UTF-8: byte 0xff at position 1" in refused([b"shoe", b"shirt", b"a\xff"])
    assert "title 1 and its query are both empty" in refused([b"shoe", b" "])


def test_client_and_command_line_ask_the_same(server: TritonServer, bundle: MatchBundle, tmp_path: Path) -> None:
    image, title, _ = real_rows(bundle)[0]
    (tmp_path / "photo.jpg").write_bytes(image)
    with ShelfwiseClient(server.url, timeout=60) as client:
        answer = client.match_text_image(title, image).probability
        many = [found.probability for found in client.match_text_image_many([(title, image, None)] * 3)]
    assert answer == pytest.approx(in_torch(bundle, image, title, ""), abs=1e-4)
    assert many == pytest.approx([answer] * 3, abs=1e-5)
    command = ["match", str(tmp_path / "photo.jpg"), title, "--url", server.url]
    printed = CliRunner().invoke(shelfwise.app, command)
    assert printed.exit_code == 0, printed.output
    assert float(printed.output) == pytest.approx(answer, abs=1e-3)
    lines = json.dumps({"title": title, "image": str(tmp_path / "photo.jpg"), "id": 7}) + "\n"
    piped = CliRunner().invoke(shelfwise.app, ["match", "--json", "--url", server.url], input=lines)
    assert json.loads(piped.output)["probability"] == pytest.approx(answer, abs=1e-5)
    assert CliRunner().invoke(shelfwise.app, ["match", str(tmp_path / "photo.jpg")]).exit_code == 2
