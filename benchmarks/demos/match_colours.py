"""The colour matcher shown: a contact sheet of a dozen products, shares right over the test split, single requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo import one_at_a_time
from catalogue.colour_groups import ColourProduct, colour_products
from catalogue.colour_sheet import LabelledPhoto, draw_colour_sheet
from catalogue.feed import Feed
from client import ColourMatch, ShelfwiseClient
from training.colour_metrics import ColourReport, colour_report

SHOWN = 12
MOST_SHOWN_PHOTOS = 6


def demonstrate(client: ShelfwiseClient, feed: Feed, output: Path) -> list[dict[str, Any]]:
    """Shows and measures; returns a row a figure."""
    products = colour_products(feed, "test")
    start = time.perf_counter()
    answers = [client.match_colours(product.images, product.labels) for product in products]
    seconds = time.perf_counter() - start
    served = measured(products, answers)
    print(f"held-out products through the server: {served.products} products, {served.images} photos")
    for name, share in served.flat().items():
        print(f"  {name:20} {share:.4f}")
    latency = one_at_a_time(
        lambda product: client.match_colours(product.images, product.labels, one_to_one=True), products
    )
    show(client, products, output / "colour-sheet.png")
    print(f"contact sheet: {output / 'colour-sheet.png'}")
    row = {"measured": "through the server", **asdict(served), "products_per_second": len(products) / seconds}
    return [row, latency]


def measured(products: Sequence[ColourProduct], answers: Sequence[Sequence[ColourMatch]]) -> ColourReport:
    """The report of what a server answered."""
    return colour_report(
        (np.array([match.probabilities for match in matches]), np.array(product.answers))
        for product, matches in zip(products, answers, strict=True)
    )


def show(client: ShelfwiseClient, products: Sequence[ColourProduct], path: Path) -> None:
    """Draws the first products of three to six photos with the one-to-one answer, green where it is right."""
    shown = [product for product in products if 3 <= len(product.images) <= MOST_SHOWN_PHOTOS][:SHOWN] or products[
        :SHOWN
    ]
    drawn = []
    for product in shown:
        matches = client.match_colours(product.images, product.labels, one_to_one=True)
        drawn.append(
            [
                LabelledPhoto(image, match.label, match.index, match.probability, match.index == answer)
                for image, match, answer in zip(product.images, matches, product.answers, strict=True)
            ]
        )
    draw_colour_sheet(drawn, path)
