"""Fashion-Gen in its published form, two HDF5 files, as a feed: for those who hold its licence.

A row of a file is one photo; the photos of a product lie one after the other and share its number. Texts are bytes in
Latin-1, in rows of one. The published validation file is what papers measure on, so it is the split "test" here. Needs
h5py, which nothing else does.

Source: Rostamzadeh et al., "Fashion-Gen: The Generative Fashion Dataset and Challenge", 2018.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from catalogue.feed import FeedError
from catalogue.product import Product, Split

TEXTS = ("input_name", "input_description", "input_category", "input_subcategory")
PHOTO, NUMBER = "input_image", "input_productID"
QUALITY = 95


def fashion_gen_products(train: Path, validation: Path) -> Iterator[Product]:
    """The products of both files; title: name and description, category: category and sub-category.

    Raises:
        catalogue.feed.FeedError: a file is none of HDF5, or lacks a data set; names both.
        ImportError: h5py is not installed.
    """
    for path, split in ((train, "train"), (validation, "test")):
        yield from _products(path, split)  # type: ignore[arg-type]


def _products(path: Path, split: Split) -> Iterator[Product]:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FeedError(f"{path} is no HDF5 file: {error}") from error
    with file:
        missing = [name for name in (PHOTO, NUMBER, *TEXTS) if name not in file]
        if missing:
            raise FeedError(f"{path} has no data set {missing[0]!r}; there are {', '.join(sorted(file))}")
        numbers = file[NUMBER][:].ravel()
        for number, rows in groupby(range(len(numbers)), key=lambda row: int(numbers[row])):
            first, *others = rows
            name, description, *path_parts = (_text(file[field][first]) for field in TEXTS)
            yield Product(
                f"{split}-{number}",
                tuple(_jpeg(file[PHOTO][row]) for row in (first, *others)),
                ". ".join(part for part in (name, description) if part),
                tuple(part for part in path_parts if part),
                {},
                split,
            )


def _text(cell: Any) -> str:
    return " ".join(cell.ravel()[0].decode("latin-1").split())


def _jpeg(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
