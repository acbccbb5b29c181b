"""How well photos were matched with colours: the share of photos, and of products with every photo right.

By arg-max, one-to-one, and arg-max after Sinkhorn's normalisation (models/assignment.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from models.assignment import one_to_one, sinkhorn


@dataclass(frozen=True)
class DecodedAccuracy:
    """Shares of photos right, and of products with all photos right."""

    images: float
    products: float


@dataclass(frozen=True)
class ColourReport:
    """The accuracy of a matcher over products of two or more colours."""

    products: int
    images: int
    arg_max: DecodedAccuracy
    one_to_one: DecodedAccuracy
    sinkhorn: DecodedAccuracy

    def flat(self) -> dict[str, float]:
        """Every figure by name, "one_to_one/images" and so on, for progress lines and plots."""
        decoded = {name: value for name, value in asdict(self).items() if isinstance(value, dict)}
        return {f"{name}/{share}": value for name, shares in decoded.items() for share, value in shares.items()}


def colour_report(answered: Iterable[tuple[np.ndarray, np.ndarray]]) -> ColourReport:
    """Measures answers against the truth.

    Args:
        answered: of each product the probabilities [n, m] and the true labels [n], n ≥ 1.

    Raises:
        ValueError: there is no product.
    """
    right: dict[str, list[np.ndarray]] = {"arg_max": [], "one_to_one": [], "sinkhorn": []}
    for probability, truth in answered:
        right["arg_max"].append(probability.argmax(1) == truth)
        right["one_to_one"].append(one_to_one(probability) == truth)
        right["sinkhorn"].append(sinkhorn(probability).argmax(1) == truth)
    if not right["arg_max"]:
        raise ValueError("there is no product to measure")
    accuracies = {
        decode: DecodedAccuracy(float(np.concatenate(marks).mean()), float(np.mean([mark.all() for mark in marks])))
        for decode, marks in right.items()
    }
    return ColourReport(len(right["arg_max"]), sum(map(len, right["arg_max"])), **accuracies)
