"""The tokenizer: no unknown characters, fixed length, at least one token for an empty text."""

from __future__ import annotations

import pytest

from models.tokenizer import encode, fit_max_length, set_length, train_tokenizer

TITLES = ["Puma Men Running Shoes", "Nike Women Black T-shirt", "Titan Men Watch", "Puma Women Sandals"] * 20


def test_every_text_is_encoded_to_the_same_length_and_can_be_read_back() -> None:
    tokenizer = set_length(train_tokenizer(TITLES, 400), 32)
    input_ids, attention_mask = encode(tokenizer, ["Puma shoes", "", "Füße 👟 שלום"])
    assert input_ids.shape == attention_mask.shape == (3, 32)
    assert attention_mask.sum(1).min() >= 1, "an empty text attends to [CLS]"
    assert attention_mask[1].sum() == 1
    assert tokenizer.token_to_id("[UNK]") not in input_ids
    assert tokenizer.decode(input_ids[0]).strip() == "puma shoes"
    assert tokenizer.decode(input_ids[2]).strip() == "füße 👟 שלום"


def test_long_texts_are_cut() -> None:
    tokenizer = set_length(train_tokenizer(TITLES, 400), 8)
    input_ids, attention_mask = encode(tokenizer, ["shoes " * 10_000])
    assert input_ids.shape == (1, 8)
    assert attention_mask.all()


def test_the_length_fits_the_titles() -> None:
    tokenizer = train_tokenizer(TITLES, 400)
    longest = max(len(tokenizer.encode(title).ids) for title in TITLES)
    fitted = fit_max_length(tokenizer, TITLES)
    assert longest <= fitted < longest + 8
    assert fit_max_length(tokenizer, ["shoes " * 1000], limit=64) == 64


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="259"):
        train_tokenizer(TITLES, 100)
