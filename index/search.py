"""Searching a snapshot: the nearest products, each once, all there are if fewer than asked for.

The plan follows from how many rows a filter keeps: few are compared one by one, of a small index all are, of a large
one the candidates of its partition; candidates are always put in order by the exact inner product. A product with
several photos is one hit, by the photo that fits best. Where the candidates hold fewer products than are wanted and
there are, more is scanned, in the end everything: a filter never costs an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .filters import Filter, kept_products
from .snapshot import CANDIDATES, PARTITION, Snapshot, SnapshotError

if TYPE_CHECKING:
    from .partition import KeptRows, Partition

FEW_ROWS = 4_096
"""So many scattered rows of 256 numbers are compared in half a millisecond, whatever the size of the index."""

DENSE_SHARE = 0.125
"""Beyond this share of a small index one pass over all rows is faster than fetching those that are kept."""

PLANS = 256
"""Filters that are remembered; one takes a byte a photo and a bit more, four bytes for each row if it keeps few."""


@dataclass(frozen=True)
class Hits:
    """The answer to one query, best first.

    Attributes:
        products: [h] numbers of products.
        rows: [h] of the photo that fits best.
        scores: [h] float32 inner product with it.
    """

    products: np.ndarray
    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What is settled before a query is seen: the products and rows that a filter keeps.

    `photos` is [N] bool where all rows are compared, `rows` are given where only they are, `kept` where a partition is
    searched.
    """

    products: int
    photos: np.ndarray | None = None
    rows: np.ndarray | None = None
    kept: KeptRows | None = None


class Searcher:
    """Answers queries from a snapshot.

    Args:
        snapshot: to be searched.
        exact: never use the partition.
    """

    def __init__(self, snapshot: Snapshot, *, exact: bool = False) -> None:
        self.snapshot = snapshot
        record = snapshot.manifest.partition
        self.partition: Partition | None = None
        if record is not None and not exact:
            from .partition import open_partition  # a server of a small catalogue needs no faiss

            self.partition = open_partition(snapshot.folder / PARTITION, record)
        self._one_photo_each = len(snapshot.vectors) == len(snapshot)
        self._photos_a_product = -(-len(snapshot.vectors) // max(len(snapshot), 1))
        self._plans: OrderedDict[tuple[tuple[str, tuple[str, ...]], ...], Plan] = OrderedDict()

    def search(self, queries: np.ndarray, k: int, wanted: Filter | None = None) -> list[Hits]:
        """The k nearest products of each query.

        Args:
            queries: [Q, D] float32, unit length.
            k: products wanted; fewer are found only where fewer are kept.
            wanted: values by attribute, see filters.py; None or empty for all products.

        Raises:
            SnapshotError: queries are of another width or not finite, k is below 1, or the index lacks an attribute.
        """
        self._check(queries, k)
        plan = self._plan(wanted or {})
        if not plan.products:
            nothing = np.empty(0, np.int64)
            return [Hits(nothing, nothing, np.empty(0, np.float32)) for _ in queries]
        if plan.rows is None and self.partition is None:
            return self._compare_all(queries, k, plan)
        return [self._search_rows(query, k, plan) for query in queries]

    def vector_of(self, product: int) -> np.ndarray:
        """[D] the embedding of a product's first photo."""
        return np.asarray(self.snapshot.vectors[self.snapshot.first_photo[product]])

    def _search_rows(self, query: np.ndarray, k: int, plan: Plan) -> Hits:
        if plan.rows is not None:
            return self._best(plan.rows, query, k)
        assert self.partition is not None
        goal = min(k, plan.products)
        effort = 1
        while effort * self.partition.scanned < 2 * len(self.snapshot.vectors):
            count = effort * max(CANDIDATES, 4 * k * self._photos_a_product)
            hits = self._best(self.partition.candidates(query, count, plan.kept, effort), query, k)
            if len(hits.products) >= goal:
                return hits
            effort *= 4
        return self._compare_all(query[None], k, plan)[0]

    def _best(self, rows: np.ndarray, query: np.ndarray, k: int) -> Hits:
        """The first k products among some rows, compared exactly."""
        scores = self.snapshot.vectors[rows] @ query
        order = _first(scores, len(scores) if not self._one_photo_each else k)
        products = self.snapshot.product[rows[order]]
        if not self._one_photo_each:
            first = np.sort(np.unique(products, return_index=True)[1])[:k]
            order, products = order[first], products[first]
        return Hits(products.astype(np.int64), rows[order], scores[order])

    def _compare_all(self, queries: np.ndarray, k: int, plan: Plan) -> list[Hits]:
        """The first k products of all that are kept, for queries that share a pass over the vectors."""
        scores = queries @ self.snapshot.vectors.T if len(queries) > 1 else (self.snapshot.vectors @ queries[0])[None]
        photos = plan.photos
        answers = []
        for own in scores:
            if photos is not None:
                own = np.where(photos, own, -np.inf)
            best = own if self._one_photo_each else np.maximum.reduceat(own, self.snapshot.first_photo[:-1])
            products = _first(best, min(k, plan.products))
            rows = products if self._one_photo_each else np.array([self._best_photo(own, p) for p in products])
            answers.append(Hits(products, rows, own[rows]))
        return answers

    def _best_photo(self, scores: np.ndarray, product: int) -> int:
        begin, end = self.snapshot.first_photo[product : product + 2]
        return int(begin + scores[begin:end].argmax())

    def _plan(self, wanted: Filter) -> Plan:
        key = tuple(sorted((attribute, tuple(sorted(values))) for attribute, values in wanted.items()))
        plan = self._plans.pop(key, None) or self._new_plan(wanted)
        self._plans[key] = plan
        if len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return plan

    def _new_plan(self, wanted: Filter) -> Plan:
        if not wanted:
            return Plan(len(self.snapshot))
        products = kept_products(self.snapshot, wanted)
        photos = products if self._one_photo_each else products[self.snapshot.product]
        count, rows = int(products.sum()), int(photos.sum())
        if rows <= FEW_ROWS or (self.partition is None and rows <= DENSE_SHARE * len(photos)):
            return Plan(count, rows=np.flatnonzero(photos))
        return Plan(count, photos, kept=self.partition.kept(photos) if self.partition is not None else None)

    def _check(self, queries: np.ndarray, k: int) -> None:
        width = self.snapshot.manifest.embed_dim
        if queries.ndim != 2 or queries.shape[1] != width:
            raise SnapshotError(f"queries must be [Q, {width}], the width of the index; got {queries.shape}")
        if not np.isfinite(queries).all():
            raise SnapshotError("a query vector holds NaN or infinity")
        if k < 1:
            raise SnapshotError(f"k is {k}; ask for at least one product")


def _first(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest, the largest first; of equal ones the earlier first."""
    if k < len(scores):
        near = np.argpartition(-scores, k - 1)[:k]
        # All that tie with the last one take part, so that which of them is given does not depend on the partition.
        near = np.flatnonzero(scores >= scores[near].min())
    else:
        near = np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")][:k]
