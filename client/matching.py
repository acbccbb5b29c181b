"""What takes several requests to `match_text_image`: any number of texts for one image, and a search ranked again.

An image is read once for all texts of a request. A search ranked again is a cheap ranking of everything followed by a
costly one of its best, as retrieval and re-ranking are told apart in Nogueira and Cho, "Passage Re-ranking with BERT",
2019. The whole has one deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from .call import Call
from .engine import Engine
from .ensembles import Query, match_text_image, match_texts
from .errors import InvalidInput
from .images import Image
from .results import FoundProduct, RankedProduct, RankedSearch, SearchResult, TextImageMatch

TEXTS_A_REQUEST = 128
"""As many as a server answers."""

PAIRS_A_REQUEST = 25
"""Half of what is usually ranked again: the server decodes the second half while it computes the first."""

Listings: TypeAlias = Mapping[str, tuple[str, Image]]
"""Title and image of products by their id."""


async def ask_texts(
    engine: Engine, image: Image, titles: Sequence[str], query: str | None, timeout: float | None
) -> tuple[TextImageMatch, ...]:
    """The answer for each title, in their order; raises ShelfwiseError."""
    call, deadline = match_texts(), engine.deadline(timeout)
    queries, texts, images = await engine.runtime.blocking(call.encode, (image, titles, query))
    answers: list[TextImageMatch] = []
    for start in range(0, len(texts), TEXTS_A_REQUEST):
        row = queries, texts[start : start + TEXTS_A_REQUEST], images
        answers += (await engine.infer(call, [row], deadline))[0]
    return tuple(answers)


async def search_ranked(
    engine: Engine,
    call: Call[SearchResult],
    asked: Query,
    listings: Listings,
    k: int,
    rerank: int,
    timeout: float | None,
) -> RankedSearch:
    """A search whose first `rerank` products are ranked again by query, title and image; raises ShelfwiseError.

    Args:
        engine: of the client.
        call: the search, for as many products as are to be ranked and returned.
        asked: what for; its query is what titles and images are matched with.
        listings: of the products; one that is not in it is left behind those that are.
        k, rerank: how many products are returned, and how many of those found are ranked again.
        timeout: seconds for all of it.
    """
    if not (asked.query or "").strip():
        raise InvalidInput("rerank matches products with a query: there is none")
    deadline = engine.deadline(timeout)
    row = await engine.runtime.blocking(call.encode, asked)
    found = (await engine.infer(call, [row], deadline))[0].products
    searched = deadline.elapsed()
    known = [product for product in found[:rerank] if product.product_id in listings]
    pairs = match_text_image()
    match: dict[str, float] = {}
    for start in range(0, len(known), PAIRS_A_REQUEST):
        products = known[start : start + PAIRS_A_REQUEST]
        items = [(*listings[product.product_id], asked.query) for product in products]
        rows = [await engine.runtime.blocking(pairs.encode, item) for item in items]
        answers = await engine.infer(pairs, rows, deadline)
        match |= {product.product_id: answer.probability for product, answer in zip(products, answers, strict=True)}
    ranked = [_ranked(product, match.get(product.product_id)) for product in found]
    ranked.sort(key=lambda product: -1.0 if product.match is None else product.match, reverse=True)  # stable
    return RankedSearch(tuple(ranked[:k]), deadline.elapsed() - searched)


def _ranked(product: FoundProduct, match: float | None) -> RankedProduct:
    known: dict[str, Any] = {field.name: getattr(product, field.name) for field in fields(FoundProduct)}
    return RankedProduct(**known, match=match)
