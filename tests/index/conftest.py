"""A small catalogue whose "images" are numbers as text, embedded by a random projection: real files, real search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from index.publish import IndexedProduct, PublishSummary, publish
from index.snapshot import Encoder

WIDTH = 32
ENCODER = Encoder(model="aa", tokenizer="bb", preprocessing="cc")
COLUMNS = ("brand", "base_colour", "category")
CATEGORIES = ("Apparel > Topwear > Shirts", "Apparel > Topwear > Tshirts", "Apparel > Bottomwear > Jeans", "Watches")

Publish = Callable[..., PublishSummary]


def embed(images: Sequence[bytes]) -> np.ndarray:
    """A unit vector for every number, NaN for what is none."""
    return np.stack([vector_of(int(image)) if image.isdigit() else np.full(WIDTH, np.nan) for image in images]).astype(
        np.float32
    )


def vector_of(number: int) -> np.ndarray:
    vector = np.random.default_rng(number).standard_normal(WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def product(number: int, images: Sequence[bytes] | None = None) -> IndexedProduct:
    attributes = {
        "brand": ("Diesel", "Puma", "Nike", "")[number % 4],
        "base_colour": ("Black", "Red")[number % 2],
        "category": CATEGORIES[number % 4],
    }
    return IndexedProduct(f"id-{number}", [str(number).encode()] if images is None else images, attributes)


def unit(generator: np.random.Generator, rows: int) -> np.ndarray:
    vectors = generator.standard_normal((rows, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def queries() -> np.ndarray:
    return unit(np.random.default_rng(7), 50)


@pytest.fixture
def publish_to(tmp_path: Path, queries: np.ndarray) -> Publish:
    """Publishes products to the folder `index`."""

    def run(products: Sequence[IndexedProduct], encoder: Encoder = ENCODER, **more: object) -> PublishSummary:
        return publish(tmp_path / "index", products, more.get("embed", embed), encoder, COLUMNS, queries)  # type: ignore[arg-type]

    return run
