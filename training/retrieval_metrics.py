"""How well queries find their documents: recall, precision and mean reciprocal rank, of all candidates or a sample.

Streaming and blocked: beside the embeddings only a block of scores is in memory, so 100,000 × 100,000 takes well below
2 GB.  Ties are broken at random, and every figure is the exact expectation over it: embeddings that are all equal score
like a guess, not like a perfect or a hopeless model, whatever the order of rows.  A query may have several relevant
documents; recall is the share of them that is found (as trec_eval has it), MRR counts the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CUTOFFS = (1, 5, 10)
BLOCK_SCORES = 2**25
"""Scores in memory at once: 128 MB."""

TIE = 1e-6
"""Scores as near as this are tied: a float32 product of matrices sums equal rows in different orders."""

NEGATIVES = 100
SAMPLED_QUERIES = 1_000
DRAWS = 5


@dataclass(frozen=True)
class RetrievalReport:
    """Means over queries.

    Attributes:
        queries: how many had a relevant document.
        recall: by cutoff, the share of the relevant documents among the first so many.
        precision: by cutoff, the share of relevant documents among the first so many.
        mrr: reciprocal of the rank of the first relevant document.
    """

    queries: int
    recall: dict[int, float]
    precision: dict[int, float]
    mrr: float

    def flat(self) -> dict[str, float]:
        """Recall and MRR by name, for progress lines and tables."""
        return {**{f"recall_at_{k}": value for k, value in self.recall.items()}, "mrr": self.mrr}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over draws."""

    mean: float
    deviation: float


def retrieval_report(
    queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Sequence[int] | np.ndarray]
) -> RetrievalReport:
    """Ranks all documents for every query, by their inner product.

    Args:
        queries: [Q, D] float32.
        documents: [M, D] float32.
        relevant: of every query the rows of its relevant documents, each once; a query without any is left out.

    Raises:
        ValueError: shapes do not fit, no query has a relevant document, one lies beyond the documents, or embeddings
            are not finite.
    """
    _check(queries, documents, relevant)
    rows = np.array([row for row, found in enumerate(relevant) if len(found)], np.int64)
    if not len(rows):
        raise ValueError("no query has a relevant document")
    sums, reciprocal = np.zeros((2, len(CUTOFFS))), 0.0
    for block in _blocks(rows, len(documents)):
        scores = queries[block] @ documents.T
        counts = np.array([len(relevant[row]) for row in block])
        owner = np.repeat(np.arange(len(block)), counts)
        columns = np.concatenate([np.asarray(relevant[row], np.int64) for row in block])
        above, tied = _standing(scores, owner, columns)
        found = _expected_found(above, tied)  # [pairs, cutoffs]
        per_query = np.add.reduceat(found, np.concatenate([[0], counts.cumsum()[:-1]]), axis=0)
        sums += [(per_query / counts[:, None]).sum(0), (per_query / CUTOFFS).sum(0)]
        reciprocal += sum(_reciprocal_ranks(owner, above, tied, len(block)))
    recall, precision = (dict(zip(CUTOFFS, map(float, total / len(rows)), strict=True)) for total in sums)
    return RetrievalReport(len(rows), recall, precision, reciprocal / len(rows))


def sum_of_recalls(reports: Sequence[RetrievalReport]) -> float:
    """SumR: 100 · (R@1 + R@5 + R@10), summed over the directions."""
    return 100 * sum(sum(report.recall.values()) for report in reports)


def sampled_report(
    queries: np.ndarray, documents: np.ndarray, groups: Sequence[object], seed: int = 0, draws: int = DRAWS
) -> dict[str, Spread]:
    """ "Sample 100": the true document among 100 others of the same group, for 1,000 queries a draw.

    Args:
        queries, documents: [Q, D], row i of one belongs to row i of the other.
        groups: [Q] of every row, a sub-category. Where a group has too few others, the rest comes from all rows.
        seed: of the draws.
        draws: how often queries and negatives are drawn.

    Returns:
        "recall_at_1", "recall_at_5", "recall_at_10" and "mrr", mean and deviation over the draws.

    Raises:
        ValueError: shapes do not fit, or there are fewer than 101 rows.
    """
    if queries.shape != documents.shape or len(groups) != len(queries):
        raise ValueError(f"queries {tuple(queries.shape)}, documents {tuple(documents.shape)}, {len(groups)} groups")
    if len(queries) <= NEGATIVES:
        raise ValueError(f"{len(queries)} rows: {NEGATIVES} negatives and the true one need {NEGATIVES + 1}")
    measured = []
    for draw in range(draws):
        asked, candidates = sampled_candidates(groups, seed, draw)
        scores = np.stack([documents[near] @ queries[row] for row, near in zip(asked, candidates, strict=True)])
        measured.append(figures_of_first(scores))
    return spread(measured)


def sampled_candidates(
    groups: Sequence[object], seed: int, draw: int, queries: int = SAMPLED_QUERIES
) -> tuple[np.ndarray, np.ndarray]:
    """The queries of a draw, and the candidates of each: for models that score pairs, not embeddings.

    Returns:
        Rows [A] that ask and [A, 101] candidates: the row itself, then its negatives.
    """
    numbers = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    generator = np.random.default_rng((seed, draw))
    asked = generator.permutation(len(groups))[:queries]
    return asked, np.stack([_with_negatives(row, members[numbers[row]], len(groups), generator) for row in asked])


def figures_of_first(scores: np.ndarray) -> dict[str, float]:
    """Recall and MRR by name, of scores [A, candidates] whose first column is the true one's."""
    owner = np.arange(len(scores))
    above, tied = _standing(scores, owner, np.zeros_like(owner))
    recall = _expected_found(above, tied).mean(0)
    figures = {f"recall_at_{k}": float(value) for k, value in zip(CUTOFFS, recall, strict=True)}
    return figures | {"mrr": float(np.mean(list(_reciprocal_ranks(owner, above, tied, len(scores)))))}


def spread(measured: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Mean and deviation of each figure over draws."""
    return {
        name: Spread(
            float(np.mean([figures[name] for figures in measured])),
            float(np.std([figures[name] for figures in measured], ddof=len(measured) > 1)),
        )
        for name in measured[0]
    }


def _with_negatives(row: int, group: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """A row, then its negatives."""
    others = group[group != row]
    if len(others) >= NEGATIVES:
        return np.concatenate([[row], generator.choice(others, NEGATIVES, replace=False)])
    rest = np.setdiff1d(np.arange(total), group)
    return np.concatenate([[row], others, generator.choice(rest, NEGATIVES - len(others), replace=False)])


def _blocks(rows: np.ndarray, documents: int) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_SCORES // documents)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _standing(scores: np.ndarray, owner: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many documents score above each relevant one, and how many as it does, itself included.

    Args:
        scores: [B, M].
        owner, columns: [pairs] row and column of the relevant documents.
    """
    standing = np.empty((2, len(owner)), np.int64)
    for pair, (row, column) in enumerate(zip(owner, columns, strict=True)):  # a row fits the cache, a block does not
        own = scores[row, column]
        above = np.count_nonzero(scores[row] > own + TIE)
        standing[:, pair] = above, np.count_nonzero(scores[row] >= own - TIE) - above
    return standing[0], standing[1]


def _expected_found(above: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """[pairs, cutoffs] the chance that a document is among the first k when ties are broken at random."""
    return np.clip((np.array(CUTOFFS) - above[:, None]) / tied[:, None], 0.0, 1.0)


def _reciprocal_ranks(owner: np.ndarray, above: np.ndarray, tied: np.ndarray, queries: int) -> Iterator[float]:
    """Of every query the expected reciprocal rank of its first relevant document."""
    best = np.full(queries, np.iinfo(np.int64).max)
    np.minimum.at(best, owner, above)
    first = above == best[owner]
    together = np.bincount(owner[first], minlength=queries)
    ties = np.zeros(queries, np.int64)
    ties[owner[first]] = tied[first]
    for ahead, size, relevant in zip(best, ties, together, strict=True):
        yield _expected_reciprocal(int(ahead), int(size), int(relevant))


def _expected_reciprocal(ahead: int, tied: int, relevant: int) -> float:
    """E[1 / rank] of the first of `relevant` documents among `tied` in random order, behind `ahead` others."""
    if tied == relevant:
        return 1 / (ahead + 1)
    # The first is at place j when the j - 1 before it are of the others: a product that shrinks from place to place.
    places = np.arange(1, tied - relevant + 2)
    still = np.concatenate([[1.0], np.cumprod((tied - relevant - places[:-1] + 1) / (tied - places[:-1] + 1))])
    chance = still * relevant / (tied - places + 1)
    return float((chance / (ahead + places)).sum())


def _check(queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Sequence[int] | np.ndarray]) -> None:
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and documents {tuple(documents.shape)} must be [Q, D], [M, D]"
        )
    if len(relevant) != len(queries):
        raise ValueError(f"{len(queries)} queries, but relevant documents of {len(relevant)}")
    largest = max((int(np.max(found)) for found in relevant if len(found)), default=0)
    if largest >= len(documents):
        raise ValueError(f"document {largest} is relevant, but there are only {len(documents)}")
    for name, embeds in (("queries", queries), ("documents", documents)):
        if not np.isfinite(embeds).all():
            raise ValueError(f"{name} are not finite")
