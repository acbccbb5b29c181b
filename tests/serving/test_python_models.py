"""decode_image, tokenize and category_labels, each asked directly in a real Triton."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from catalogue.images import decode_image
from serving.server import TritonServer
from tests.serving.conftest import bytes_input, connect, infer_input
from tests.serving.graphs import draw_image, install, install_decode_image, install_tokenize, train_tokenizer

HEIGHT, WIDTH, LENGTH = 40, 30, 10
LABELS = ["Apparel > Topwear > Tshirts", "Footwear > Shoes > Löparskor", "Accessories > Watches"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def client(
    start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> InferenceServerClient:
    repository = tmp_path_factory.mktemp("python-models")
    install_decode_image(repository, HEIGHT, WIDTH)
    install_tokenize(repository, tokenizer, LENGTH)
    install_tokenize(repository, tokenizer, LENGTH, name="tokenize_full_batches")
    config = repository / "tokenize_full_batches" / "config.pbtxt"
    waiting = "dynamic_batching { preferred_batch_size: 32 max_queue_delay_microseconds: 30000000 }"
    assert "dynamic_batching { }" in config.read_text()
    config.write_text(config.read_text().replace("dynamic_batching { }", waiting))
    (install(repository, "category_labels") / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return connect(start_server(repository))


def decode(client: InferenceServerClient, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    result = client.infer("decode_image", [bytes_input("image", images)], client_timeout=20)
    return result.as_numpy("pixel_values"), result.as_numpy("image_present")


def tokenize(
    client: InferenceServerClient, texts: list[bytes], model: str = "tokenize"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    result = client.infer(model, [bytes_input("text", texts)], client_timeout=20)
    return tuple(result.as_numpy(name) for name in ("input_ids", "attention_mask", "text_present"))  # type: ignore[return-value]


def look_up(
    client: InferenceServerClient, ids: list[list[int]], image: list[bool], text: list[bool]
) -> list[list[str]]:
    inputs = [
        infer_input("category_id", np.array(ids, np.int32), "INT32"),
        infer_input("probability", np.full(np.shape(ids), 0.5, np.float32), "FP32"),
        infer_input("neighbour_kl", np.zeros((len(ids), 1), np.float32), "FP32"),
        infer_input("image_present", np.array(image)[:, None], "BOOL"),
        infer_input("text_present", np.array(text)[:, None], "BOOL"),
    ]
    names = client.infer("category_labels", inputs, client_timeout=20).as_numpy("category")
    return [[name.decode() for name in row] for row in names]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call()
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return raised.value.message()


# decode_image


def test_images_are_decoded_as_in_training(client: InferenceServerClient) -> None:
    images = [draw_image(), draw_image("PNG", (200, 90), "red"), draw_image("WEBP", (31, 77), "green")]
    pixels, present = decode(client, images)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(present, [[True]] * 3)
    for row, image in enumerate(images):
        # Another build of the codecs may round a resized pixel differently, by one step.
        difference = pixels[row].astype(int) - decode_image(image, HEIGHT, WIDTH)
        assert np.abs(difference).max() <= 1


def test_no_bytes_are_a_white_picture_and_absent(client: InferenceServerClient) -> None:
    pixels, present = decode(client, [b"", draw_image()])
    assert (pixels[0] == 255).all()
    np.testing.assert_array_equal(present, [[False], [True]])


def test_bad_image_is_refused_with_what_was_found(client: InferenceServerClient) -> None:
    assert "SVG" in refusal(lambda: decode(client, [b"<svg xmlns='http://www.w3.org/2000/svg'/>"]))
    assert "truncated" in refusal(lambda: decode(client, [draw_image(size=(300, 400))[:900]])).lower()


def test_bad_image_among_rows_is_named_by_its_row(client: InferenceServerClient) -> None:
    message = refusal(lambda: decode(client, [draw_image(), b"", b"no image"]))
    assert message.startswith("image of row 2: ")


def test_bad_image_fails_alone_in_a_batch(client: InferenceServerClient) -> None:
    """While 20 rows are being decoded, others queue up behind them and become one batch, with the bad one in it."""
    good = draw_image(size=(900, 1200))
    with ThreadPoolExecutor(10) as callers:
        slow = callers.submit(decode, client, [good] * 20)
        time.sleep(0.01)
        images = [good, good, b"no image", good, good, good]
        answers = [callers.submit(decode, client, [image]) for image in images]
        assert len(slow.result()[0]) == 20
        for image, answer in zip(images, answers, strict=True):
            if image is good:
                assert answer.result()[0].shape == (1, HEIGHT, WIDTH, 3)
            else:
                assert "no image" in refusal(answer.result)
    batches = client.get_inference_statistics("decode_image").model_stats[0].batch_stats
    assert any(1 < batch.batch_size < 20 for batch in batches)


def test_waiting_for_another_branch_changes_nothing(client: InferenceServerClient) -> None:
    inputs = [bytes_input("image", [draw_image()]), infer_input("after", np.zeros((1, 7), np.float32), "FP32")]
    pixels = client.infer("decode_image", inputs, client_timeout=20).as_numpy("pixel_values")
    np.testing.assert_array_equal(pixels, decode(client, [draw_image()])[0])


# tokenize


def test_tokens_are_those_of_the_tokenizer(client: InferenceServerClient, tokenizer: Tokenizer) -> None:
    texts = ["Puma Men black running shoes", "leather belt"]
    input_ids, attention_mask, present = tokenize(client, [text.encode() for text in texts])
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text).ids[:LENGTH]
        assert list(input_ids[row]) == ids + [tokenizer.token_to_id("[PAD]")] * (LENGTH - len(ids))
        assert list(attention_mask[row]) == [1] * len(ids) + [0] * (LENGTH - len(ids))
    np.testing.assert_array_equal(present, [[True], [True]])


@pytest.mark.parametrize("text", [b"", b" ", b"\t\r\n\xc2\xa0\xe3\x80\x80", b"\x00", b" \x00 \x1f "])
def test_nothing_to_read_is_absent_with_one_attended_token(text: bytes, client: InferenceServerClient) -> None:
    input_ids, attention_mask, present = tokenize(client, [text])
    assert not present[0, 0]
    assert attention_mask[0, 0] == 1
    assert input_ids.shape == attention_mask.shape == (1, LENGTH)


def test_control_characters_are_spaces(client: InferenceServerClient) -> None:
    tokens = tokenize(client, [b"leather\x00belt\x7f\xc2\x85", b"leather belt"])
    for tensor in tokens:
        np.testing.assert_array_equal(tensor[0], tensor[1])


def test_megabyte_of_text_is_cut_and_costs_no_more_than_a_title(client: InferenceServerClient) -> None:
    title = b"Puma Men black running shoes and a leather belt and a wrist watch "
    start = time.perf_counter()
    long = tokenize(client, [title * 16000])
    assert time.perf_counter() - start < 1.0
    short = tokenize(client, [title])
    np.testing.assert_array_equal(long[0], short[0])
    np.testing.assert_array_equal(long[1], short[1])
    # Blanks in front do not count.
    np.testing.assert_array_equal(tokenize(client, [b" \x00" * 500_000 + title])[0], short[0])


@pytest.mark.parametrize("text", ["👟 running shoes", "حذاء رياضي", "日本語", "\u202egnp"])
def test_any_script_is_answered(text: str, client: InferenceServerClient) -> None:
    _, attention_mask, present = tokenize(client, [text.encode()])
    assert present[0, 0]
    assert attention_mask.any()


def test_invalid_utf8_is_refused_and_named_by_its_row(client: InferenceServerClient) -> None:
    assert refusal(lambda: tokenize(client, [b"caf\xe9"])) == "text is not valid UTF-8: byte 0xe9 at position 3"
    assert refusal(lambda: tokenize(client, [b"a", b"\xff"])).startswith("text of row 1 is not valid UTF-8")


def test_invalid_utf8_fails_alone_in_a_batch(client: InferenceServerClient) -> None:
    texts = [b"leather belt", b"\xff", b"wrist watch", b"handbag"] * 8
    model = "tokenize_full_batches"  # the same files, but it waits until 32 rows make a batch
    with ThreadPoolExecutor(len(texts)) as callers:
        answers = [callers.submit(tokenize, client, [text], model) for text in texts]
        for text, answer in zip(texts, answers, strict=True):
            if text == b"\xff":
                refusal(answer.result)
            else:
                assert answer.result()[2].all()
    batches = client.get_inference_statistics(model).model_stats[0].batch_stats
    assert [batch.batch_size for batch in batches] == [32]


# category_labels


def test_ids_become_full_paths(client: InferenceServerClient) -> None:
    assert look_up(client, [[2, 0], [1, 1]], [True, False], [False, True]) == [
        [LABELS[2], LABELS[0]],
        [LABELS[1], LABELS[1]],
    ]


def test_neither_image_nor_title_is_refused_naming_both(client: InferenceServerClient) -> None:
    message = refusal(lambda: look_up(client, [[0]], [False], [False]))
    assert "image" in message
    assert "title" in message
    assert refusal(lambda: look_up(client, [[0], [0]], [True, False], [False, False])).startswith("row 1: ")


def test_id_without_a_label_is_an_internal_error(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"labels.txt names 3") as raised:
        look_up(client, [[3]], [True], [True])
    assert raised.value.status() == "StatusCode.INTERNAL"
