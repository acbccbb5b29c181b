"""prepare_product, asked directly in a real Triton."""

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
from tests.catalogue.pictures import webp_bomb
from tests.serving.conftest import bytes_input, connect
from tests.serving.graphs import draw_image, install_prepare_product, train_tokenizer

HEIGHT, WIDTH, LENGTH = 40, 30, 10
MODEL = "prepare_product"
FULL_BATCHES = "prepare_full_batches"  # the same files, but it waits until 32 rows make a batch


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def client(
    start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> InferenceServerClient:
    repository = tmp_path_factory.mktemp("python-models")
    for name in (MODEL, FULL_BATCHES):
        install_prepare_product(repository, tokenizer, HEIGHT, WIDTH, LENGTH, name=name)
    config = repository / FULL_BATCHES / "config.pbtxt"
    waiting = "dynamic_batching {\n  preferred_batch_size: 32 max_queue_delay_microseconds: 30000000"
    assert "dynamic_batching {" in config.read_text()
    config.write_text(config.read_text().replace("dynamic_batching {", waiting))
    return connect(start_server(repository))


def decode(client: InferenceServerClient, images: list[bytes], model: str = MODEL) -> tuple[np.ndarray, np.ndarray]:
    inputs = [bytes_input("image", images), bytes_input("title", [b"a title"] * len(images))]
    result = client.infer(model, inputs, client_timeout=60)
    return result.as_numpy("pixel_values"), result.as_numpy("image_present")


def tokenize(client: InferenceServerClient, titles: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inputs = [bytes_input("image", [draw_image()] * len(titles)), bytes_input("title", titles)]
    result = client.infer(MODEL, inputs, client_timeout=20)
    return tuple(result.as_numpy(name) for name in ("input_ids", "attention_mask", "text_present"))  # type: ignore[return-value]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call()
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return raised.value.message()


# Images


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


def test_bad_row_fails_alone_in_a_batch(client: InferenceServerClient) -> None:
    good = (draw_image(), b"leather belt")
    bad = [(b"no image", b"leather belt"), (draw_image(), b"\xff"), (b"", b"")]
    rows = ([good] * 5 + bad) * 4

    def ask(row: tuple[bytes, bytes]) -> np.ndarray:
        inputs = [bytes_input("image", [row[0]]), bytes_input("title", [row[1]])]
        return client.infer(FULL_BATCHES, inputs, client_timeout=20).as_numpy("input_ids")

    expected = tokenize(client, [good[1]])[0]
    with ThreadPoolExecutor(len(rows)) as callers:
        answers = [callers.submit(ask, row) for row in rows]
        for row, answer in zip(rows, answers, strict=True):
            if row is good:
                np.testing.assert_array_equal(answer.result(), expected)
            else:
                refusal(answer.result)
    batches = client.get_inference_statistics(FULL_BATCHES).model_stats[0].batch_stats
    assert [batch.batch_size for batch in batches] == [32]


# Images that take long


def test_a_bomb_of_forty_bytes_a_row_is_refused_by_what_it_declares(client: InferenceServerClient) -> None:
    message = refusal(lambda: decode(client, [webp_bomb(16_380, 3_846)] * 32))
    assert message == "image of row 0: WEBP declares 16380x3846 pixels; at most 16777216 are taken"


def test_images_that_are_too_much_together_are_refused_with_their_sum(client: InferenceServerClient) -> None:
    message = refusal(lambda: decode(client, [webp_bomb(4096, 4096)] * 10))
    assert message.startswith("10 images of 168 megapixels to decode; at most 160 are taken")


def test_large_images_are_answered_and_hold_up_nobody(client: InferenceServerClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(decode, client, [webp_bomb(4096, 4096)] * 9)
        for _ in range(20):
            pixels, _ = decode(client, [draw_image()])
            assert pixels.shape == (1, HEIGHT, WIDTH, 3)
        assert not large.done()
        pixels, present = large.result()
    assert present.all()
    assert (pixels[:, (HEIGHT - WIDTH) // 2 : (HEIGHT + WIDTH) // 2] == 0).all()


def test_a_damaged_large_image_is_refused_by_its_row(client: InferenceServerClient) -> None:
    damaged = bytearray(draw_image("PNG", (4000, 4000)))
    damaged[len(damaged) // 2] ^= 0xFF
    assert refusal(lambda: decode(client, [draw_image(), bytes(damaged)])).startswith("image of row 1: damaged")


# Titles


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
    assert refusal(lambda: tokenize(client, [b"caf\xe9"])) == "title is not valid UTF-8: byte 0xe9 at position 3"
    assert refusal(lambda: tokenize(client, [b"a", b"\xff"])).startswith("title of row 1 is not valid UTF-8")


def test_neither_image_nor_title_is_refused_naming_both(client: InferenceServerClient) -> None:
    def ask(images: list[bytes], titles: list[bytes]) -> None:
        client.infer(MODEL, [bytes_input("image", images), bytes_input("title", titles)], client_timeout=20)

    message = refusal(lambda: ask([b""], [b" "]))
    assert "image" in message
    assert "title" in message
    assert refusal(lambda: ask([b"", b""], [b"a title", b""])).startswith("row 1: ")
