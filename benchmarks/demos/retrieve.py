"""Search shown: texts with brands and colours, a photo, more like a product, filters; and recall through the server.

Titles of held-out products search for their own photos, among all products of the feed, parsed by the server as any
query is. Queries on the sheet are made of what the feed has most of, so that it says something on any feed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo import one_at_a_time
from catalogue.feed import Feed
from catalogue.images import is_readable
from catalogue.product import Product
from catalogue.search_sheet import SheetSearch, draw_search_sheet, sheet_hits
from client import FoundProduct, ShelfwiseClient, ShelfwiseError

SHOWN = 8
ASKED = 1000
CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Asked:
    """A search to be shown."""

    query: str | None = None
    image: bytes | None = None
    like: str | None = None
    filters: dict[str, str] | None = None

    def __str__(self) -> str:
        parts = [self.query or "", "photo" if self.image else "", f"more like {self.like}" if self.like else ""]
        parts += [f"[{name}: {value}]" for name, value in (self.filters or {}).items()]
        return " ".join(part for part in parts if part)


def demonstrate(client: ShelfwiseClient, feed: Feed, output: Path) -> list[dict[str, Any]]:
    """Shows and measures; returns a row a figure."""
    held_out = [
        product
        for product in feed
        if product.split == "test" and product.title and product.images and is_readable(product.images[0])
    ]
    show(client, searches(held_out), feed, output / "search-sheet.png")
    print(f"contact sheet: {output / 'search-sheet.png'}")
    recall = measured(client, held_out[:ASKED])
    figures = "  ".join(f"R@{k} {recall[f'recall_at_{k}']:.4f}" for k in CUTOFFS)
    print(f"titles of held-out products find them among all: {figures}  ({recall['products_per_second']:.0f}/s)")
    latency = one_at_a_time(lambda product: client.search(product.title, k=10), held_out)
    return [{"measured": "through the server", **recall}, latency]


def searches(products: Sequence[Product]) -> list[Asked]:
    """What is shown: words, brands and colours that many of the products have."""
    brands = Counter(product.entities["brand"] for product in products if "brand" in product.entities)
    colours = Counter(product.entities["base_colour"] for product in products if "base_colour" in product.entities)
    kinds = Counter(product.category[-1] for product in products if product.category)
    brand, colour, kind = ([name for name, _ in counts.most_common(3)] for counts in (brands, colours, kinds))
    shown: list[Asked] = []
    if brand and kind:
        shown.append(Asked(f"{brand[0].lower()} {kind[0].lower()}"))
    if colour and kind:
        shown.append(Asked(f"{colour[0].lower()} {kind[-1].lower()}"))
        shown.append(Asked(kind[0].lower(), filters={"base_colour": colour[-1]}))
    shown.append(Asked(image=products[0].images[0]))
    if colour:
        shown.append(Asked(f"in {colour[1 % len(colour)].lower()}", products[0].images[0]))
    shown.append(Asked(like=products[-1].id))
    return shown


def show(client: ShelfwiseClient, asked: Sequence[Asked], feed: Feed, sheet: Path) -> None:
    """Prints some searches with what they found, and draws them."""
    answers = [client.search(one.query, one.image, one.like, k=SHOWN, filters=one.filters).products for one in asked]
    found: list[FoundProduct] = [product for answer in answers for product in answer]
    hits = iter(sheet_hits(found, feed))
    rows = []
    for one, answer in zip(asked, answers, strict=True):
        row = SheetSearch(str(one), one.image, [next(hits) for _ in answer])
        print(f"\n{one}")
        for hit in row.hits[:4]:
            print(f"  {hit.score:.4f}  {hit.title[:60]:60}  {', '.join(hit.matched)}")
        rows.append(row)
    print()
    draw_search_sheet(rows, sheet)


def measured(client: ShelfwiseClient, products: Sequence[Product]) -> dict[str, float]:
    """How often the title of a product finds it, through the server.

    Raises:
        ShelfwiseError: a search could not be answered.
    """
    start = time.perf_counter()
    ranks = []
    answers = client.search_many(((product.title, None) for product in products), k=max(CUTOFFS))
    for product, answer in zip(products, answers, strict=True):
        if isinstance(answer, ShelfwiseError):
            raise answer
        found = [hit.product_id for hit in answer.products]
        ranks.append(found.index(product.id) if product.id in found else len(found))
    seconds = time.perf_counter() - start
    return {
        "queries": len(products),
        **{f"recall_at_{k}": sum(rank < k for rank in ranks) / len(ranks) for k in CUTOFFS},
        "products_per_second": len(products) / seconds,
    }
