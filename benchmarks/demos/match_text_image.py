"""Text-image matching shown: own titles against others, planted swaps, a contact sheet, single requests."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo import one_at_a_time
from catalogue.feed import Feed
from catalogue.images import is_readable
from catalogue.listing_sheet import draw_listing_sheet
from catalogue.product import Product
from client import ShelfwiseClient
from training.audit import Listing, share_found, swap_titles
from training.match_metrics import match_report

ASKED = 1000
SHOWN = 24
PLANTED = 0.05


def demonstrate(client: ShelfwiseClient, feed: Feed, output: Path) -> list[dict[str, Any]]:
    """Shows and measures; returns a row a figure."""
    products = listings_of(feed)
    titles, photos = [product.title for product in products], [product.images[0] for product in products]
    categories = [product.category for product in products]
    everything = np.arange(len(products))
    generator = np.random.default_rng(0)
    wrong, exchanged = swap_titles(titles, categories, everything, 1.0, generator)
    start = time.perf_counter()
    own = probabilities(client, titles, photos)
    seconds = time.perf_counter() - start
    others = probabilities(client, [wrong[row] for row in exchanged], [photos[row] for row in exchanged])
    report = match_report(own[exchanged], others)
    print(f"held-out listings through the server, own title against another of the category: {report.photos} photos")
    print(f"  accuracy {report.accuracy:.4f}   AUC {report.auc:.4f}")

    planted, swapped = swap_titles(titles, categories, everything, PLANTED, generator)
    mixed = own.copy()
    mixed[swapped] = probabilities(client, [planted[row] for row in swapped], [photos[row] for row in swapped])
    order = np.argsort(mixed, kind="stable")
    audited = [Listing(products[row].id, planted[row], products[row].category, float(mixed[row])) for row in order]
    found = share_found(audited, {products[row].id for row in swapped}, PLANTED)
    print(f"audit: of {len(swapped)} planted swaps among {len(products)} listings {found:.0%} are in the first 5 %")
    sheet = output / "audit-sheet.png"
    draw_listing_sheet([(photos[row], planted[row], float(mixed[row])) for row in order[:SHOWN]], sheet)
    print(f"contact sheet: {sheet}")
    latency = one_at_a_time(lambda product: client.match_text_image(product.title, product.images[0]), products)
    return [
        {"measured": "through the server", **asdict(report), "listings_per_second": len(products) / seconds},
        {"measured": "audit", "listings": len(products), "planted": len(swapped), "found_in_first_5_percent": found},
        latency,
    ]


def listings_of(feed: Feed) -> list[Product]:
    """Held-out products with a title and a photo that can be read."""
    whole = [
        product
        for product in feed
        if product.split == "test" and product.title and product.images and is_readable(product.images[0])
    ]
    return whole[:ASKED]


def probabilities(client: ShelfwiseClient, titles: list[str], photos: list[bytes]) -> np.ndarray:
    """[N] of titles and photos, by the server.

    Raises:
        client.ShelfwiseError: a pair was refused.
    """
    answers = client.match_text_image_many(zip(titles, photos, [None] * len(titles), strict=True))
    found = []
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        found.append(answer.probability)
    return np.array(found)
