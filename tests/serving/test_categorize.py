"""The ensemble `categorize` of an exported repository, asked over gRPC as any caller would ask it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from catalogue.images import MAX_BYTES, decode_image
from serving import readiness
from serving.server import TritonServer
from tests.serving.conftest import bytes_input, connect, infer_input
from tests.serving.graphs import draw_image

TITLE = b"Puma Men black running shoes"


@dataclass(frozen=True)
class Answer:
    """The outputs of one request; each [rows, k] or [rows, 1]."""

    category: np.ndarray
    category_id: np.ndarray
    probability: np.ndarray
    neighbour_kl: np.ndarray

    def __getitem__(self, row: int) -> Answer:
        here = slice(row, row + 1)
        return Answer(self.category[here], self.category_id[here], self.probability[here], self.neighbour_kl[here])


@pytest.fixture(scope="module")
def client(categorize_server: TritonServer) -> InferenceServerClient:
    return connect(categorize_server)


def categorize(client: InferenceServerClient, images: list[bytes], titles: list[bytes]) -> Answer:
    inputs = [bytes_input("image", images), bytes_input("title", titles)]
    result: InferResult = client.infer("categorize", inputs, client_timeout=60)
    return Answer(*(result.as_numpy(name) for name in ("category", "category_id", "probability", "neighbour_kl")))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call()
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return raised.value.message()


def assert_same(answer: Answer, expected: Answer) -> None:
    """Equal within 1e-5: every category's probability (equal ones may swap places) and neighbour_kl."""
    np.testing.assert_allclose(answer.probability, expected.probability, atol=1e-5)
    np.testing.assert_allclose(answer.neighbour_kl, expected.neighbour_kl, atol=1e-5, rtol=1e-5)
    for row in range(len(answer.category_id)):
        ours = dict(zip(answer.category_id[row], answer.probability[row], strict=True))
        theirs = dict(zip(expected.category_id[row], expected.probability[row], strict=True))
        least = min(theirs.values()) + 1e-5  # the last places may go to one category or another
        assert {name for name, value in ours.items() if value > least} == {
            name for name, value in theirs.items() if value > least
        }


def newest(repository: Path, model: str) -> Path:
    return max(
        (folder for folder in (repository / model).iterdir() if folder.name.isdigit()), key=lambda f: int(f.name)
    )


def in_process(repository: Path, images: list[bytes], titles: list[bytes]) -> Answer:
    """The same files, called one after another without a server."""
    sizes = json.loads((newest(repository, "prepare_product") / "preprocessing.json").read_text())
    height, width, length = sizes["height"], sizes["width"], sizes["max_length"]
    tokenizer = Tokenizer.from_file(str(newest(repository, "prepare_product") / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    padding = tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}
    tokenizer.enable_padding(length=length, pad_id=padding["pad_id"], pad_token=padding["pad_token"])
    labels = (repository / "categorize" / "labels.txt").read_text(encoding="utf-8").splitlines()

    def run(model: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(newest(repository, model) / "model.onnx")
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    white = np.full((height, width, 3), 255, np.uint8)
    pixels = [decode_image(image, height, width) if image else white for image in images]
    encodings = tokenizer.encode_batch([title.decode().strip() for title in titles])
    attention_mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
    attention_mask[:, 0] = 1
    input_ids = np.array([encoding.ids for encoding in encodings], np.int64)
    found = run(
        "categorizer",
        {
            "pixel_values": np.stack(pixels),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "image_present": np.array([[bool(image)] for image in images]),
            "text_present": np.array([[bool(title.strip())] for title in titles]),
        },
    )
    names = np.array([label.encode() for label in labels], np.object_)
    return Answer(names[found["category_id"]], found["category_id"], found["probability"], found["neighbour_kl"])


def products(count: int) -> tuple[list[bytes], list[bytes]]:
    """Rows of all kinds: whole, without the image, without the title."""
    colours = ["navy", "red", "green", "black", "orange"]
    images = [draw_image("PNG", colour=colours[row % 5], size=(40 + 7 * row, 90 - row)) for row in range(count)]
    titles = [f"{colours[-row % 5]} {thing}".encode() for row, thing in enumerate(["shoes", "shirt", "belt"] * count)]
    for row in range(1, count, 3):
        images[row] = b""
    for row in range(2, count, 3):
        titles[row] = b""
    return images, titles[:count]


# Answers


def test_answer_is_ranked_and_named(client: InferenceServerClient, categorize_repository: Path) -> None:
    answer = categorize(client, [draw_image()], [TITLE])
    labels = (categorize_repository / "categorize" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert answer.category.shape == answer.probability.shape == (1, min(len(labels), 20))
    assert answer.neighbour_kl.shape == (1, 1)
    assert [name.decode() for name in answer.category[0]] == [labels[index] for index in answer.category_id[0]]
    assert (np.diff(answer.probability[0]) <= 0).all()
    assert 0 < answer.probability.sum() <= 1 + 1e-5
    assert len(set(answer.category_id[0])) == answer.category_id.shape[1]


@pytest.mark.parametrize(
    "names",
    [
        ["category"],
        ["category_id"],
        ["probability"],
        ["neighbour_kl"],
        ["class_probability"],
        ["sure_from"],
        ["category", "neighbour_kl"],
    ],
)
def test_any_choice_of_outputs_is_answered_alike(names: list[str], client: InferenceServerClient) -> None:
    inputs = [bytes_input("image", [draw_image()]), bytes_input("title", [TITLE])]
    whole = client.infer("categorize", inputs, client_timeout=20)
    chosen = client.infer(
        "categorize", inputs, outputs=[InferRequestedOutput(name) for name in names], client_timeout=20
    )
    assert sorted(output.name for output in chosen.get_response().outputs) == names
    for name in names:
        np.testing.assert_array_equal(chosen.as_numpy(name), whole.as_numpy(name))


@pytest.mark.parametrize("name", ["category", "category_id", "probability", "neighbour_kl", "sure_from"])
def test_no_choice_of_outputs_goes_round_the_refusal_of_empty_rows(name: str, client: InferenceServerClient) -> None:
    inputs = [bytes_input("image", [b""]), bytes_input("title", [b""])]
    with pytest.raises(InferenceServerException, match="image and title are both empty"):
        client.infer("categorize", inputs, outputs=[InferRequestedOutput(name)], client_timeout=20)


def test_answers_equal_onnx_runtime_in_process(client: InferenceServerClient, categorize_repository: Path) -> None:
    images, titles = products(9)
    assert_same(categorize(client, images, titles), in_process(categorize_repository, images, titles))


def test_answer_does_not_depend_on_batch_neighbours(client: InferenceServerClient) -> None:
    images, titles = products(32)
    together = categorize(client, images, titles)
    with ThreadPoolExecutor(8) as callers:  # dynamic batches of whatever meets
        alone = list(callers.map(lambda row: categorize(client, [row[0]], [row[1]]), zip(images, titles, strict=True)))
    for row, answer in enumerate(alone):
        assert_same(answer, together[row])
    backwards = categorize(client, images[::-1], titles[::-1])
    for row in range(32):
        assert_same(backwards[31 - row], together[row])


def test_absent_image_and_absent_title_are_answered_from_the_other(
    client: InferenceServerClient, categorize_repository: Path
) -> None:
    for images, titles in (([b""], [TITLE]), ([draw_image()], [b""]), ([draw_image()], [b" \t "])):
        assert_same(categorize(client, images, titles), in_process(categorize_repository, images, titles))


def test_readiness_asks_the_ensemble(categorize_server: TritonServer, categorize_repository: Path) -> None:
    assert "categorize" in readiness.check(categorize_server.url, categorize_repository)


# Images


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def cmyk_jpeg() -> bytes:
    return save(Image.new("CMYK", (60, 80), (255, 0, 0, 0)), "JPEG")


def sixteen_bit_png() -> bytes:
    return save(Image.fromarray(np.linspace(0, 65535, 4800).astype(np.uint16).reshape(80, 60)), "PNG")


def palette_png_with_alpha() -> bytes:
    return save(Image.new("RGBA", (60, 80), (200, 30, 30, 128)).quantize(16), "PNG")


def animated_gif() -> bytes:
    frames = [Image.new("P", (60, 80), colour) for colour in (1, 2, 3)]
    return save(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (90, 40), "white")
    image.paste((0, 0, 160), (0, 0, 45, 40))
    return save(image, "JPEG", exif=exif)


VIEWABLE = {
    "CMYK JPEG": cmyk_jpeg(),
    "16-bit PNG": sixteen_bit_png(),
    "palette and alpha PNG": palette_png_with_alpha(),
    "animated GIF": animated_gif(),
    "EXIF-rotated JPEG": rotated_jpeg(),
    "1x1": save(Image.new("RGB", (1, 1), "red"), "PNG"),
    "1x10000": save(Image.new("RGB", (1, 10_000), "red"), "PNG"),
    "WebP": draw_image("WEBP"),
}


@pytest.mark.parametrize("name", VIEWABLE)
def test_image_is_answered_as_a_viewer_shows_it(
    name: str, client: InferenceServerClient, categorize_repository: Path
) -> None:
    images, titles = [VIEWABLE[name]], [b""]
    assert_same(categorize(client, images, titles), in_process(categorize_repository, images, titles))


def declared_png(width: int, height: int) -> bytes:
    """A PNG that declares its size and brings a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


REFUSED = {
    "not an image": (b"\x00\x01\x02\x03" * 100, "not an image"),
    "text file": (b"Dear customer, ...", "text beginning 'Dear customer"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "truncated JPEG": (draw_image(size=(300, 400))[:1200], "JPEG"),
    "PNG without pixels": (draw_image("PNG")[:33], "PNG"),
    "decompression bomb": (declared_png(20_000, 20_000), "400000000 pixels"),
    "more than 20 MB": (draw_image() + b"\0" * MAX_BYTES, str(MAX_BYTES)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_image_is_refused_with_what_was_found(name: str, client: InferenceServerClient) -> None:
    image, found = REFUSED[name]
    message = refusal(lambda: categorize(client, [image], [TITLE]))
    assert message.startswith("in ensemble 'categorize', image: ")
    assert found in message


# Titles


@pytest.mark.parametrize(
    "title",
    [b"shoes " * 175_000, "👟 running shoes".encode(), "حذاء رياضي".encode(), b"with\0NUL"],
    ids=["1 MB", "emoji", "right to left", "NUL"],
)
def test_any_title_is_answered(title: bytes, client: InferenceServerClient) -> None:
    answer = categorize(client, [b""], [title])
    assert np.isfinite(answer.probability).all()


def test_title_is_cut_to_the_length_of_the_model(client: InferenceServerClient) -> None:
    assert_same(categorize(client, [b""], [b"shoes " * 175_000]), categorize(client, [b""], [b"shoes " * 200]))


def test_invalid_utf8_is_refused(client: InferenceServerClient) -> None:
    assert "not valid UTF-8" in refusal(lambda: categorize(client, [draw_image()], [b"caf\xe9"]))


# Requests


@pytest.mark.parametrize("title", [b"", b"  \t\n", b"\0"])
def test_both_empty_is_refused_naming_the_two_inputs(title: bytes, client: InferenceServerClient) -> None:
    message = refusal(lambda: categorize(client, [b""], [title]))
    assert "image and title are both empty" in message


def test_bad_row_is_named(client: InferenceServerClient) -> None:
    images = [draw_image(), b"", b"no image"]
    assert "image of row 2: " in refusal(lambda: categorize(client, images, [TITLE] * 3))
    assert "row 1: the inputs image and title" in refusal(lambda: categorize(client, images[:2], [TITLE, b""]))


def test_bad_request_fails_alone_among_good_ones(client: InferenceServerClient) -> None:
    good = (draw_image(size=(600, 800)), TITLE)
    expected = categorize(client, [good[0]], [good[1]])
    requests = [good, (b"no image", TITLE), good, (b"", b""), good, (draw_image(), b"\xff"), good, good] * 3
    with ThreadPoolExecutor(len(requests)) as callers:
        answers = [callers.submit(categorize, client, [image], [title]) for image, title in requests]
        for request, answer in zip(requests, answers, strict=True):
            if request is good:
                assert_same(answer.result(), expected)
            else:
                refusal(answer.result)
    batches = client.get_inference_statistics("prepare_product").model_stats[0].batch_stats
    assert max(batch.batch_size for batch in batches) > 1


def test_failed_requests_leave_nothing_behind_in_the_server(categorize_repository: Path, tmp_path: Path) -> None:
    """In Triton 24.10 a request that fails while two of its steps are under way is never freed (see config.pbtxt)."""
    log_file = tmp_path / "triton.log"
    server = TritonServer(categorize_repository, grpc_port=0, metrics_port=0, log_file=log_file)
    with server:
        client = connect(server)
        for image, title in ((b"no image", TITLE), (draw_image(), b"\xff"), (b"", b"")) * 5:
            with pytest.raises(InferenceServerException):
                categorize(client, [image], [title])
        client.close()
        assert server.stop() == 0
    assert "Found 0 model versions that have in-flight inferences" in log_file.read_text()
    assert "has 1 in-flight" not in log_file.read_text()
    assert server.process is not None
    assert server.process.returncode == 0


def test_wrong_requests_get_the_documented_status(client: InferenceServerClient) -> None:
    image, title = bytes_input("image", [draw_image()]), bytes_input("title", [TITLE])

    def status(inputs: list, model: str = "categorize", version: str = "") -> str:
        with pytest.raises(InferenceServerException) as raised:
            client.infer(model, inputs, model_version=version, client_timeout=20)
        return raised.value.status().removeprefix("StatusCode.")

    assert status([infer_input("image", np.zeros((1, 1), np.float32), "FP32"), title]) == "INVALID_ARGUMENT"
    flat = infer_input("image", np.array([b"x"], np.object_), "BYTES")
    assert status([flat, title]) == "INVALID_ARGUMENT"
    assert status([image]) == "INVALID_ARGUMENT"
    assert status([image, title, bytes_input("colour", [b"red"])]) == "INVALID_ARGUMENT"
    assert status([image, bytes_input("title", [TITLE] * 2)]) == "INVALID_ARGUMENT"
    assert status([bytes_input("image", [b""] * 33), bytes_input("title", [TITLE] * 33)]) == "INVALID_ARGUMENT"
    assert status([image, title], model="categorise") in ("NOT_FOUND", "UNAVAILABLE")
    assert status([image, title], version="99") in ("NOT_FOUND", "UNAVAILABLE")
    assert_same(categorize(client, [draw_image()], [TITLE]), categorize(client, [draw_image()], [TITLE]))
