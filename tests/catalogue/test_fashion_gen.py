"""Fashion-Gen's reader on files of the published layout, made here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogue.fashion_gen import fashion_gen_products
from catalogue.feed import FeedError, open_feed, write_feed

h5py = pytest.importorskip("h5py", reason="h5py is optional")

NUMBERS = [7, 7, 7, 12]
COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)]


def write(path: Path, **left_out: object) -> None:
    """Four photos of two products, as the published files hold them."""

    def texts(first: str, second: str) -> np.ndarray:
        return np.array([[text.encode("latin-1")] for text in (first, first, first, second)], dtype="S60")

    with h5py.File(path, "w") as file:
        file["input_image"] = np.stack([np.full((256, 256, 3), colour, np.uint8) for colour in COLOURS])
        file["input_productID"] = np.array(NUMBERS, np.int64)[:, None]
        file["input_name"] = texts("Red Café Dress", "Grey Socks")
        file["input_description"] = texts("Silk  dress, knee length.", "")
        file["input_category"] = texts("DRESSES", "SOCKS")
        file["input_subcategory"] = texts("SHORT DRESSES", "SOCKS")
        for name in left_out:
            del file[name]


def test_photos_of_a_product_come_together(tmp_path: Path) -> None:
    write(tmp_path / "train.h5")
    write(tmp_path / "validation.h5")
    products = list(fashion_gen_products(tmp_path / "train.h5", tmp_path / "validation.h5"))
    assert [(product.id, product.split, len(product.images)) for product in products] == [
        ("train-7", "train", 3),
        ("train-12", "train", 1),
        ("test-7", "test", 3),
        ("test-12", "test", 1),
    ]
    assert products[0].title == "Red Café Dress. Silk dress, knee length."
    assert products[0].category == ("DRESSES", "SHORT DRESSES")
    assert products[1].title == "Grey Socks"
    for image, colour in zip(products[0].images, COLOURS, strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        assert pixels.shape == (256, 256, 3)
        assert np.abs(pixels.astype(int) - colour).max() < 4
    write_feed(tmp_path / "feed.parquet", products)
    assert [product.title for product in open_feed(tmp_path / "feed.parquet")] == [item.title for item in products]


def test_other_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.h5", input_description=None)
    with pytest.raises(FeedError, match=r"train.h5 has no data set 'input_description'"):
        list(fashion_gen_products(tmp_path / "train.h5", tmp_path / "train.h5"))
    (tmp_path / "no.h5").write_bytes(b"text")
    with pytest.raises(FeedError, match=r"no.h5 is no HDF5 file"):
        list(fashion_gen_products(tmp_path / "no.h5", tmp_path / "no.h5"))
