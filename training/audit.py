"""Which listings of a feed have a text that does not fit their photo: the least probable first.

What catalogue teams look for by hand: titles that slipped to the next row of a sheet, photos of another product.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalogue.atomic import atomic_file
from catalogue.product import SPLITS, Split, join_path
from catalogue.store import Store

from .embeddings import evaluating
from .examples import NO_PHOTO, make_examples
from .match_tasks import match_probabilities
from .match_text_image import MatchBundle


@dataclass(frozen=True)
class Listing:
    """A listing and how probable it is that its title belongs to its main photo."""

    id: str
    title: str
    category: tuple[str, ...]
    probability: float


def audit(bundle: MatchBundle, store: Store, split: Split | None = None) -> list[Listing]:
    """Every listing that has a title and a photo that can be read, the least probable first.

    Args:
        bundle: of a text-image matcher.
        store: the feed, decoded to the size that the matcher takes.
        split: only products of this split; None: all of them.
    """
    examples = make_examples(store, bundle.tokenizer)
    products, first = np.unique(examples.product, return_index=True)  # a product's main photo comes first
    photos = examples.photo[first]
    kept = (photos != NO_PHOTO) & examples.text_present[products]
    if split is not None:
        kept &= store.splits[products] == SPLITS.index(split)
    products, photos = products[kept], photos[kept]
    with evaluating(bundle.model):
        tokens = examples.input_ids, examples.attention_mask
        probabilities = match_probabilities(bundle.model, store.photos, tokens, photos, products)
    return [
        Listing(
            store.ids[products[row]],
            store.titles[products[row]],
            store.categories[products[row]],
            float(probabilities[row]),
        )
        for row in np.argsort(probabilities, kind="stable")
    ]


def write_table(listings: Sequence[Listing], path: Path) -> None:
    """Writes listings as CSV, whole or not at all."""
    with atomic_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["probability", "id", "category", "title"])
        for listing in listings:
            writer.writerow([f"{listing.probability:.6f}", listing.id, join_path(listing.category), listing.title])


def swap_titles(
    titles: list[str], groups: list[tuple[str, ...]], rows: np.ndarray, share: float, generator: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Plants what an audit should find: a share of titles exchanged within their group.

    Args:
        titles, groups: [P] of every product.
        rows: the products to choose from.
        share: of the rows, how many get a title of another.
        generator: all chance comes from it.

    Returns:
        The titles [P] with the exchanges, and the rows that have another's title, each of different words than its own.
    """
    swapped = list(titles)
    changed: list[int] = []
    order = generator.permutation(rows)
    waiting: dict[tuple[str, ...], int] = {}
    for row in order:
        if len(changed) + 2 > round(share * len(rows)):
            break
        other = waiting.get(groups[row])
        if other is None:
            waiting[groups[row]] = int(row)
        elif titles[other].lower() != titles[row].lower():
            swapped[row], swapped[other] = titles[other], titles[row]
            changed += [int(row), other]
            del waiting[groups[row]]
    return swapped, np.array(sorted(changed), np.int64)


def share_found(listings: Sequence[Listing], swapped: set[str], share: float) -> float:
    """How many of the swapped listings, by id, are among the first `share` of all."""
    first = {listing.id for listing in listings[: round(share * len(listings))]}
    return len(first & swapped) / len(swapped)
