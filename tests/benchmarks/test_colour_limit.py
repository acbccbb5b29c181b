"""The measures of label trust, on labels whose faults are known."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from benchmarks.quality.colour_limit import doubted_labels, repeated_photos
from catalogue.colour_groups import ColourGroup, ColourVariant
from catalogue.store import Store
from training.colour_examples import ColourExamples


def variant(colour: str, *, named: bool = True) -> ColourVariant:
    return ColourVariant("shirt", colour, colour, named, ("Shirts",), "test")


def examples_of(pixels: np.ndarray, *variants: ColourVariant) -> ColourExamples:
    """Photos of as many products, in a store."""
    nothing = [""] * len(variants)
    keys = np.array([zlib.crc32(photo.tobytes()) for photo in pixels], np.uint64)
    rows = np.arange(len(variants))
    store = Store("", "", nothing, nothing, [()] * len(rows), {}, rows, rows, rows >= 0, keys, pixels)
    return ColourExamples(store, variants)


def test_repeated_photos_count_pairs_of_the_same_pixels_under_different_colours() -> None:
    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    pixels[3:5, 0, 0, 0] = 1  # a second photo, twice
    pixels[5] = 9  # a third, once
    colours = ("Blue", "Blue", "Navy Blue", "Red", "Red", "Green")
    found = repeated_photos(examples_of(pixels, *map(variant, colours)), named=True)
    assert (found.pairs, found.disagree) == (4, 0.5)
    assert found.limit == pytest.approx(0.5**0.5)


def test_repeated_photos_of_titles_without_a_colour_can_be_left_out() -> None:
    examples = examples_of(np.zeros((2, 4, 4, 3), np.uint8), variant("Blue"), variant("Red", named=False))
    assert repeated_photos(examples, named=False).disagree == 1.0
    with pytest.raises(ValueError, match="twice"):
        repeated_photos(examples, named=True)


def products(count: int) -> list[ColourGroup]:
    return [ColourGroup((2 * n, 2 * n + 1), ("Blue", "Red"), ("Blue", "Red"), (0, 1)) for n in range(count)]


SURE = np.array([[0.9, 0.1], [0.2, 0.8]])


def test_a_label_is_doubted_only_where_both_judges_are_sure_of_the_same_other_one() -> None:
    swapped = SURE[::-1]
    unsure = np.array([[0.49, 0.51], [0.51, 0.49]])  # leans the same way, less than usual
    first = [SURE, SURE, SURE, swapped, swapped, unsure]
    second = [SURE, SURE, SURE, swapped, SURE, swapped]
    found = doubted_labels(products(6), [first, second])
    assert (found.images, found.products) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    assert found.both_wrong == pytest.approx(2 / 6)
    assert (found.mistakes, found.mistakes_doubted) == (2, 1)


def test_judges_who_know_the_colours_find_exchanged_labels_and_guessing_ones_do_not() -> None:
    sharp = [SURE] * 20
    chance = np.random.default_rng(0)
    rows = chance.dirichlet((1, 1), (2, 20, 2))
    assert doubted_labels(products(20), [sharp, sharp]).sensitivity == 1.0
    assert doubted_labels(products(20), [list(rows[0]), list(rows[1])]).sensitivity < 0.5
