"""The client against the exported categorizer: real image files, real answers, the server's own refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import ask
from client import (
    MAX_IMAGE_BYTES,
    Categorization,
    InvalidInput,
    Item,
    ShelfwiseClient,
    ShelfwiseError,
)
from client.ensembles import judge
from models.category_head import NEVER, way_number
from serving.server import TritonServer
from training.categorize import CATEGORIZER

TITLE = "Acme men blue running shoes"


@pytest.fixture
def served(categorize_server: TritonServer) -> Iterator[ShelfwiseClient]:
    with ShelfwiseClient(categorize_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def raw(categorize_server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    """tritonclient itself, for what ShelfwiseClient refuses to send and does not ask."""
    with triton.InferenceServerClient(categorize_server.url) as client:
        yield client


def drawing(seed: int = 0) -> Image.Image:
    """A picture in RGB, 90 × 120 pixels."""
    picture = Image.new("RGB", (90, 120), "white")
    colours = np.random.default_rng(seed).integers(0, 200, (2, 3)).tolist()
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 30, 70, 60), fill=tuple(colours[0]))
    draw.rectangle((10, 60 + seed, 80, 100), fill=tuple(colours[1]))
    return picture


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def assert_equal_answers(found: Categorization | ShelfwiseError, expected: Categorization) -> None:
    assert isinstance(found, Categorization)
    assert [category.label for category in found.categories] == [category.label for category in expected.categories]
    for one, other in zip(found.categories, expected.categories, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
    assert found.neighbour_kl == pytest.approx(expected.neighbour_kl, abs=1e-4)


def infer(raw: triton.InferenceServerClient, image: bytes, title: bytes) -> triton.InferResult:
    inputs = []
    for name, element in (("image", image), ("title", title)):
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[element]], np.object_))
    return raw.infer("categorize", inputs)


@pytest.mark.parametrize("way", ["image + title", "image", "title"])
def test_an_answer_is_sure_from_the_probability_on_that_the_bundle_asks_in_this_way(
    way: str, served: ShelfwiseClient, categorize_bundle: Path
) -> None:
    head = CATEGORIZER.load(categorize_bundle).model.head
    asked = {"image": drawing(), "title": TITLE}
    answer = served.judge(**{name: value for name, value in asked.items() if name in way})
    assert answer.sure == (answer.categories[0].probability >= float(head.sure_from[way_number(way)]))
    assert_equal_answers(answer, served.categorize(**{name: value for name, value in asked.items() if name in way}))
    assert [found.sure for found in served.judge_many([(None, TITLE)])] == [served.judge(title=TITLE).sure]


@pytest.mark.parametrize(("sure_from", "sure"), [(0.8, True), (0.81, False), (0.0, True), (NEVER, False)])
def test_sure_is_from_the_probability_on_that_the_server_says(sure_from: float, sure: bool) -> None:
    outputs = {
        "category": [b"A", b"B"],
        "category_id": [0, 1],
        "probability": [0.8, 0.2],
        "neighbour_kl": [0.1],
        "sure_from": [sure_from],
    }
    assert judge(1).decode((), outputs).sure is sure


def test_the_command_says_sure_or_look(served: ShelfwiseClient, categorize_server: TritonServer) -> None:
    result = CliRunner().invoke(ask.app, ["categorize", "--title", TITLE, "--url", categorize_server.url])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == ("sure" if served.judge(title=TITLE).sure else "look")
    pipe = ["categorize", "--json", "--url", categorize_server.url]
    piped = CliRunner().invoke(ask.app, pipe, input=json.dumps({"title": TITLE}) + "\n")
    assert json.loads(piped.output)["sure"] == served.judge(title=TITLE).sure


def test_categories_are_ranked_distinct_paths(served: ShelfwiseClient) -> None:
    assert served.is_ready()
    result = served.categorize(drawing(), TITLE, k=5)
    probabilities = [category.probability for category in result.categories]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1 + 1e-6
    assert len({category.id for category in result.categories}) == 5
    for category in result.categories:
        assert category.label == " > ".join(category.path)
        assert all(category.path)
    assert result.neighbour_kl >= 0


def test_fewer_categories_are_the_first_of_more(served: ShelfwiseClient) -> None:
    five = served.categorize(title=TITLE, k=5)
    two = served.categorize(title=TITLE, k=2)
    assert_equal_answers(two, Categorization(five.categories[:2], five.neighbour_kl))


def test_every_form_of_an_image_gives_the_same_answer(served: ShelfwiseClient, tmp_path: Path) -> None:
    picture = drawing()
    path = tmp_path / "drawing.png"
    picture.save(path)
    expected = served.categorize(png(picture), TITLE)
    for image in (path, str(path), memoryview(png(picture)), np.asarray(picture), picture):
        assert_equal_answers(served.categorize(image, TITLE), expected)


def test_either_input_alone_is_answered_and_matters(served: ShelfwiseClient) -> None:
    both = served.categorize(drawing(), TITLE)
    image_only = served.categorize(drawing())
    title_only = served.categorize(title=TITLE)
    assert len({both.categories[0].probability, *(x.categories[0].probability for x in (image_only, title_only))}) == 3
    assert_equal_answers(served.categorize(drawing(), "  "), image_only)
    assert_equal_answers(served.categorize(b"", TITLE), title_only)


def test_stream_answers_as_single_calls_do_and_bad_images_cost_themselves(served: ShelfwiseClient) -> None:
    items = [Item(drawing(seed), f"{TITLE} {seed}" if seed % 2 else None) for seed in range(20)]
    expected = [served.categorize(item.image, item.title) for item in items]
    bad = {3: b"<svg/>", 11: png(drawing())[:300], 17: b"not an image"}
    for row, image in bad.items():
        items[row] = Item(image, "title")
    answers = list(served.categorize_many(items))
    assert len(answers) == len(items)
    for row, answer in enumerate(answers):
        if row in bad:
            assert isinstance(answer, InvalidInput)
            assert answer.status == "INVALID_ARGUMENT"
        else:
            assert_equal_answers(answer, expected[row])


def test_client_and_server_refuse_the_same_inputs(served: ShelfwiseClient, raw: triton.InferenceServerClient) -> None:
    for image, title in ((b"", b""), (b"", b" \n"), (bytes(MAX_IMAGE_BYTES + 1), b"a")):
        with pytest.raises(InvalidInput) as by_client:
            served.categorize(image, title.decode())
        assert by_client.value.status is None
        with pytest.raises(InferenceServerException) as by_server:
            infer(raw, image, title)
        assert by_server.value.status() == "StatusCode.INVALID_ARGUMENT"
        if not image:
            for message in (str(by_client.value), by_server.value.message()):
                assert "image" in message
                assert "title" in message


def test_more_categories_than_the_server_returns_are_refused_with_both_numbers(
    served: ShelfwiseClient, raw: triton.InferenceServerClient
) -> None:
    returned = infer(raw, b"", b"a shoe").as_numpy("category").shape[1]
    assert len(served.categorize(title="a shoe", k=returned).categories) == returned
    with pytest.raises(InvalidInput, match=f"k is {returned + 1}, but this server returns {returned}"):
        served.categorize(title="a shoe", k=returned + 1)


def test_classification_extension_names_the_most_probable_categories(
    served: ShelfwiseClient, raw: triton.InferenceServerClient
) -> None:
    picture = png(drawing())
    inputs = []
    for name, value in (("image", picture), ("title", TITLE.encode())):
        tensor = triton.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], np.object_))
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("class_probability", class_count=3)]
    ranked = raw.infer("categorize", inputs, outputs=outputs).as_numpy("class_probability")[0]
    expected = served.categorize(image=picture, title=TITLE, k=3).categories
    for text, category in zip(ranked, expected, strict=True):
        probability, number, label = text.decode().split(":", 2)
        assert (int(number), label) == (category.id, category.label)
        assert float(probability) == pytest.approx(category.probability, abs=1e-5)
