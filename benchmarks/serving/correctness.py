"""Does a server say what the ONNX files say? Asked before it is timed: a wrong answer is listed as wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.serving.load import Target
from benchmarks.serving.pipeline import Answers, Embeddings
from catalogue.product import Product

TOLERANCE = 1e-4
"""Largest difference of a probability or of an embedding's entry; float32 sums in another order differ by less than a
hundredth of it."""


def mistake(target: Target, products: Sequence[Product], expected: Answers | Embeddings, batch: int = 1) -> str:
    """What is wrong with a server's answers about products, "" when nothing is.

    Args:
        target: asked about every product, in requests of `batch` rows.
        products: each with an image and a title.
        expected: what the same files answer in one process, a row a product.
        batch: rows a request.
    """
    connection = target.connect()
    try:
        for start in range(0, len(products), batch):
            rows = slice(start, start + batch)
            images = [product.images[0] for product in products[rows]]
            titles = [product.title for product in products[rows]]
            answer = target.read(connection.call(target.prepare(images, titles)))
            wanted = replace(expected, **{name: array[rows] for name, array in vars(expected).items()})
            found = difference(answer, wanted)
            if found:
                return f"products {start} to {start + len(images) - 1}: {found}"
    finally:
        connection.close()
    return ""


def difference(answer: Answers | Embeddings, wanted: Answers | Embeddings) -> str:
    """How an answer differs from the one that is wanted, which is of the same kind; "" when it does not.

    The order of categories that are equally probable within the tolerance means nothing.
    """
    for name, array in vars(wanted).items():
        if getattr(answer, name).shape != array.shape:
            return f"{name} has shape {list(getattr(answer, name).shape)}, not {list(array.shape)}"
    for name, array in vars(wanted).items():
        if array.dtype.kind == "f":
            gap = float(np.abs(getattr(answer, name) - array).max())
            if not gap <= TOLERANCE:
                return f"{name} differs by {gap:.2e}"
    if isinstance(wanted, Embeddings):
        return ""
    apart = np.full(wanted.probability.shape, True)
    close = -np.diff(wanted.probability, axis=1) <= 2 * TOLERANCE
    apart[:, 1:] &= ~close
    apart[:, :-1] &= ~close
    apart[:, -1] = False  # the next one, which is not listed, may be as probable
    for name in ("category_id", "category"):
        if (getattr(answer, name) != getattr(wanted, name))[apart].any():
            return f"{name} differs where the probabilities are distinct"
    return ""
