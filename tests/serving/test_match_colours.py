"""The served ensemble match_colours: answers of the trained model, ragged requests, and every refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import shelfwise
from catalogue.colour_sheet import WIDTH
from catalogue.product import Product
from client import ColourMatch, InvalidInput, ShelfwiseClient, ShelfwiseError
from export.match_colours import ServedColourMatcher, real_inputs
from models.assignment import one_to_one
from serving.readiness import check
from serving.server import StartupError, TritonServer
from tests.releases import copy_to_change
from training.match_colours import COLOUR_MATCHER, ColourMatcherBundle, sample_groups


@pytest.fixture
def served(colour_server: TritonServer) -> Iterator[ShelfwiseClient]:
    with ShelfwiseClient(colour_server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def bundle(colour_bundle: Path) -> ColourMatcherBundle:
    return COLOUR_MATCHER.load(colour_bundle)


def images(products: list[Product]) -> list[bytes]:
    return [product.images[0] for product in products]


def labels(products: list[Product]) -> list[str]:
    return [product.entities["base_colour"] for product in products]


def probabilities(matches: tuple[ColourMatch, ...]) -> np.ndarray:
    return np.array([match.probabilities for match in matches])


def raw_request(photos: list[bytes], texts: list[bytes]) -> list[triton.InferInput]:
    """A request that the client would refuse to send."""
    tensors = []
    for name, elements in (("images", photos), ("labels", texts)):
        tensor = triton.InferInput(name, [1, len(elements)], "BYTES")
        tensor.set_data_from_numpy(np.array(elements, np.object_).reshape(1, -1))
        tensors.append(tensor)
    return tensors


def status_of(server: TritonServer, photos: list[bytes], texts: list[bytes]) -> tuple[str, str]:
    """Status and message of a request that fails."""
    with triton.InferenceServerClient(server.url) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("match_colours", raw_request(photos, texts), client_timeout=30)
    return str(caught.value.status()), str(caught.value.message())


def test_answers_are_the_models(served: ShelfwiseClient, bundle: ColourMatcherBundle) -> None:
    for sample in sample_groups(bundle.samples)[:4]:
        products = list(sample)
        texts = [*labels(products), "plaid"]
        with torch.no_grad():
            expected = ServedColourMatcher(bundle.model)(**real_inputs(bundle, [(images(products), texts)]))[0].numpy()
        matches = served.match_colours(images(products), texts)
        np.testing.assert_allclose(probabilities(matches), expected, atol=1e-4)
        assert [match.index for match in matches] == expected.argmax(1).tolist()
        assigned = served.match_colours(images(products), texts, one_to_one=True)
        assert [match.index for match in assigned] == one_to_one(expected).tolist()
        assert [match.label for match in assigned] == [texts[match.index] for match in assigned]
        assert [m.probability for m in assigned] == [m.probabilities[m.index] for m in assigned]


def test_labels_are_cleaned_as_in_training(served: ShelfwiseClient, bundle: ColourMatcherBundle) -> None:
    products = sample_groups(bundle.samples)[0]
    plain = [f"{name}" for name in ("Red", "Blue", "Green", "Black", "White", "Pink", "Grey", "Brown")]
    noisy = [f"{name} Shirt (ships within 30 days)" for name in plain]
    np.testing.assert_allclose(
        probabilities(served.match_colours(images(products), noisy)),
        probabilities(served.match_colours(images(products), plain)),
        atol=1e-6,
    )


def test_products_of_any_size_at_once_are_answered_as_alone(
    served: ShelfwiseClient, bundle: ColourMatcherBundle
) -> None:
    every = bundle.samples
    sizes = [(1 + number % 5, 1 + number % 5 + number % 3) for number in range(64)]
    requests = [
        (images(every[number % 7 :][:n]), [f"{text} {place}" for place, text in enumerate(labels(every[:m]))])
        for number, (n, m) in enumerate(sizes)
    ]
    alone = [probabilities(served.match_colours(*request)) for request in requests]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda request: probabilities(served.match_colours(*request)), requests))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_products_of_different_sizes_are_one_batch_of_the_matcher(
    start_server: Callable[..., TritonServer],
    served: ShelfwiseClient,
    colour_repository: Path,
    bundle: ColourMatcherBundle,
    tmp_path: Path,
) -> None:
    repository = copy_to_change(colour_repository, tmp_path / "repository")
    config = repository / "colour_matcher" / "config.pbtxt"
    waiting = "dynamic_batching {\n  preferred_batch_size: 4 max_queue_delay_microseconds: 20000000"
    assert "dynamic_batching {" in config.read_text()
    config.write_text(config.read_text().replace("dynamic_batching {", waiting))
    every = bundle.samples
    sizes = [(1, 1), (5, 9), (2, 30), (16, 32)]
    requests = [
        (images((every * 2)[:n]), [f"{name} {place}" for place, name in enumerate(labels((every * 4)[:m]))])
        for n, m in sizes
    ]
    server = start_server(repository)
    with ShelfwiseClient(server.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: probabilities(client.match_colours(*request)), requests))
    with triton.InferenceServerClient(server.url) as raw:
        batches = raw.get_inference_statistics("colour_matcher").model_stats[0].batch_stats
    assert [batch.batch_size for batch in batches] == [4]
    for found, request, size in zip(together, requests, sizes, strict=True):
        assert found.shape == size
        np.testing.assert_allclose(found, probabilities(served.match_colours(*request)), atol=1e-5)


@pytest.mark.parametrize(
    "texts",
    [
        ["red", "red"],
        ["red shirt", "red shirt"],
        ["(ships today)", "【现货】"],
        ["", "红色"],
        ["色", "色"],
        ["x" * 2**20, "black"],
        ["🟥", "\u202eder\u202c"],
        ["re\x00d", "blue"],
    ],
)
def test_odd_labels_are_answered(served: ShelfwiseClient, bundle: ColourMatcherBundle, texts: list[str]) -> None:
    matches = served.match_colours(images(sample_groups(bundle.samples)[0])[:2], texts, one_to_one=True)
    assert sorted(match.index for match in matches) == [0, 1]
    np.testing.assert_allclose(probabilities(matches).sum(1), 1, atol=1e-5)


def test_more_photos_than_labels_are_refused_with_both_counts(
    colour_server: TritonServer, bundle: ColourMatcherBundle
) -> None:
    photo = images(sample_groups(bundle.samples)[0])[0]
    status, message = status_of(colour_server, [photo, photo], [b"red"])
    assert "INVALID_ARGUMENT" in status
    assert "2 images and 1 labels" in message


@pytest.mark.parametrize(("photos", "texts"), [(0, 0), (0, 2), (1, 0)])
def test_nothing_to_match_is_refused(
    colour_server: TritonServer, bundle: ColourMatcherBundle, photos: int, texts: int
) -> None:
    photo = images(sample_groups(bundle.samples)[0])[0]
    status, message = status_of(colour_server, [photo] * photos, [b"red"] * texts)
    assert "INVALID_ARGUMENT" in status
    assert f"{photos} images and {texts} labels" in message


def test_a_thousand_photos_are_refused_before_they_are_decoded(colour_server: TritonServer) -> None:
    status, message = status_of(colour_server, [b"no image"] * 1000, [b"label"] * 1000)
    assert "INVALID_ARGUMENT" in status
    assert "1000 images and 1000 labels: at most 128 images and 256 labels" in message


def test_products_that_are_too_much_together_are_refused_with_their_counts(colour_server: TritonServer) -> None:
    tensors = []
    for name, elements in (("images", 128), ("labels", 256)):
        tensor = triton.InferInput(name, [32, elements], "BYTES")
        tensor.set_data_from_numpy(np.full((32, elements), b"anything", np.object_))
        tensors.append(tensor)
    with triton.InferenceServerClient(colour_server.url) as client:
        with pytest.raises(InferenceServerException, match="32 products x 128 images x 256 labels") as caught:
            client.infer("match_colours", tensors, client_timeout=30)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "at most 32768 pairs are taken in one request" in str(caught.value.message())


def test_labels_that_are_not_utf_8_are_refused_by_their_place(
    colour_server: TritonServer, bundle: ColourMatcherBundle
) -> None:
    photo = images(sample_groups(bundle.samples)[0])[0]
    status, message = status_of(colour_server, [photo], [b"red", b"bl\xffue"])
    assert "INVALID_ARGUMENT" in status
    assert "label 1 is not valid UTF-8: byte 0xff at position 2" in message


@pytest.mark.parametrize("bad", [b"not an image", b"", b"\xff\xd8\xff\xe0 truncated"])
def test_a_photo_that_cannot_be_decoded_fails_its_own_request_by_its_place(
    served: ShelfwiseClient, bundle: ColourMatcherBundle, bad: bytes
) -> None:
    products = sample_groups(bundle.samples)[0]
    photos, texts = images(products)[:2], labels(products)[:2]
    expected = probabilities(served.match_colours(photos, texts))

    def ask(number: int) -> tuple[ColourMatch, ...] | ShelfwiseError:
        try:
            return served.match_colours([photos[0], bad] if number % 4 == 1 else photos, texts)
        except ShelfwiseError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    for number, answer in enumerate(answers):
        if number % 4 == 1:
            assert isinstance(answer, InvalidInput)
            assert "image 1: " in str(answer)
        else:
            assert isinstance(answer, tuple), answer
            np.testing.assert_allclose(probabilities(answer), expected, atol=1e-5)


def test_what_was_exported_for_a_gpu_answers_the_same_through_triton(
    start_server: Callable[..., TritonServer],
    served: ShelfwiseClient,
    fused_repository: Path,
    bundle: ColourMatcherBundle,
    tmp_path: Path,
) -> None:
    """On the CPU, in the server's own Python with this environment's torch behind its packages."""
    repository = copy_to_change(fused_repository, tmp_path / "repository")
    config, model = repository / "colour_matcher" / "config.pbtxt", repository / "colour_matcher" / "1" / "model.py"
    assert "kind: KIND_GPU" in config.read_text()
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    packages = Path(torch.__file__).parents[1]
    model.write_text(f"import sys\nsys.path.append({str(packages)!r})\n{model.read_text()}")
    requests = [(images(list(sample)), labels(list(sample))) for sample in sample_groups(bundle.samples)[:8]]
    server = start_server(repository)
    with ShelfwiseClient(server.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: probabilities(client.match_colours(*request)), requests))
    for found, request in zip(answers, requests, strict=True):
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        # In bfloat16 here, in float32 there.
        np.testing.assert_allclose(found, probabilities(served.match_colours(*request)), atol=0.1)


def test_what_was_exported_for_a_gpu_says_which_package_the_server_lacks(
    start_server: Callable[..., TritonServer], fused_repository: Path, tmp_path: Path
) -> None:
    repository = copy_to_change(fused_repository, tmp_path / "repository")
    config = repository / "colour_matcher" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    with pytest.raises(StartupError, match=r"needs the Python package torch: install serving/requirements-gpu\.txt"):
        start_server(repository)


def test_command_prints_a_label_for_every_photo_and_draws_them(
    colour_server: TritonServer, bundle: ColourMatcherBundle, tmp_path: Path
) -> None:
    products = sample_groups(bundle.samples)[0]
    files = [tmp_path / f"{number}.jpg" for number in range(len(products))]
    for file, product in zip(files, products, strict=True):
        file.write_bytes(product.images[0])
    names = labels(products)
    command = ["match-colours", *map(str, files), "--labels", ", ".join(names), "--one-to-one"]
    command += ["--picture", str(tmp_path / "sheet.png"), "--url", colour_server.url]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 0, result.output
    printed = result.output.splitlines()
    assert len(printed) == len(files)
    assert sorted(line.split()[1] for line in printed) == sorted(name.split()[0] for name in names)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == WIDTH * len(files)
    refused = CliRunner().invoke(shelfwise.app, [*command[:2], "--labels", "red", "--url", "127.0.0.1:1"])
    assert refused.exit_code == 3
    assert "error: " in refused.output


def test_readiness_asks_about_real_products(colour_server: TritonServer, colour_repository: Path) -> None:
    assert check(colour_server.url, colour_repository) == ["match_colours"]
