"""What bulk asks of a product, for each system, and the columns of its answer in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from catalogue.product import Product
from client import Embedding, Judgement, ShelfwiseClient, Stream, StreamOptions, TextImageMatch

Item = tuple[bytes | str | None, ...]


@dataclass(frozen=True)
class BulkSystem:
    """One system.

    Attributes:
        ensemble: that answers.
        item: what is asked about a product; all that its answer depends on.
        ask: a stream of answers about items, `k` candidates each where the system has candidates.
        columns: of an answer, in the result.
        row: their values.
    """

    ensemble: str
    item: Callable[[Product], Item]
    ask: Callable[[ShelfwiseClient, Iterable[Any], int, StreamOptions], Stream[Any]]
    columns: pa.Schema
    row: Callable[[Any], Mapping[str, Any]]


def _categorization(answer: Judgement) -> Mapping[str, Any]:
    first = answer.categories[0]
    return {
        "category": first.label,
        "probability": first.probability,
        "sure": answer.sure,
        "neighbour_kl": answer.neighbour_kl,
        "candidates": [{"category": each.label, "probability": each.probability} for each in answer.categories],
    }


def _embedding(answer: Embedding) -> Mapping[str, Any]:
    return {"image_embeds": answer.values}


def _match(answer: TextImageMatch) -> Mapping[str, Any]:
    return {"probability": answer.probability}


def _image(product: Product) -> bytes | None:
    return product.images[0] if product.images else None


CANDIDATE = pa.struct({"category": pa.string(), "probability": pa.float32()})

SYSTEMS: Mapping[str, BulkSystem] = {
    "categorize": BulkSystem(
        "categorize",
        lambda product: (_image(product), product.title),
        lambda client, items, k, options: client.judge_many(items, k=k, **options),
        pa.schema(
            {
                "category": pa.string(),
                "probability": pa.float32(),
                "sure": pa.bool_(),
                "neighbour_kl": pa.float32(),
                "candidates": pa.list_(CANDIDATE),
            }
        ),
        _categorization,
    ),
    "embed-image": BulkSystem(
        "embed_image",
        lambda product: (_image(product),),
        lambda client, items, k, options: client.embed_image_many((image for (image,) in items), **options),
        pa.schema({"image_embeds": pa.list_(pa.float32())}),
        _embedding,
    ),
    "match-text-image": BulkSystem(
        "match_text_image",
        lambda product: (product.title, _image(product)),
        lambda client, items, k, options: client.match_text_image_many(
            ((title, image or b"", None) for title, image in items), **options
        ),
        pa.schema({"probability": pa.float32()}),
        _match,
    ),
}
"""By the name on the command line. Every product is asked about with its first image."""


def system_named(name: str) -> BulkSystem:
    """Raises ValueError for an unknown one."""
    if name not in SYSTEMS:
        raise ValueError(f"no system {name!r} answers about whole feeds; there are {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
