"""How well text and photo are told to belong together: accuracy and AUC, each photo's own title against another's.

The other title is of a product of the same category that is no kin, so that neither the kind of product nor a repeated
title or photo gives the answer away. With queries the same is asked of whole products: does this one, photo and title,
answer the query, or another of its category?
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from tokenizers import Tokenizer

from models.fashionbert import FashionBert
from models.tokenizer import encode

from .examples import Examples
from .match_tasks import match_probabilities
from .negatives import NONE, SameCategoryNegatives
from .queries import QueryMaker


@dataclass(frozen=True)
class MatchReport:
    """Figures over N photos, each with its own text and another's.

    Attributes:
        photos: N.
        accuracy: share of the 2 N answers that are on the right side of one half.
        auc: chance that a pair that belongs together is held more probable than one that does not; ties are half.
    """

    photos: int
    accuracy: float
    auc: float


def match_report(right: np.ndarray, wrong: np.ndarray) -> MatchReport:
    """The report of the probabilities [N] of pairs that belong together, and [N] of some that do not."""
    accuracy = ((right > 0.5).mean() + (wrong <= 0.5).mean()) / 2
    return MatchReport(len(right), float(accuracy), area_under_curve(right, wrong))


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney, 1947); ties count one half."""
    ranks = rankdata(np.concatenate([positive, negative]))
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


class HeldOutPairs:
    """The pairs to ask about some examples, the same for every model.

    Args:
        examples: where they come from.
        rows: indices of held-out examples, each with a photo and a title.
        seed: of the other titles and of the queries.
        queries: makes queries, to ask about them, too.
        tokenizer: for the queries.
    """

    def __init__(
        self,
        examples: Examples,
        rows: np.ndarray,
        seed: int,
        queries: QueryMaker | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        generator = np.random.default_rng((seed, 1))
        others = SameCategoryNegatives(examples, rows).draw(rows, generator) if len(rows) else rows
        self.examples = examples
        self.rows, self.others = rows[others != NONE], others[others != NONE]
        self.queries: list[str] | None = None
        if queries is not None and tokenizer is not None:
            self.queries = [queries.make(product, generator).text for product in examples.product[self.rows]]
            self.query_tokens = encode(tokenizer, self.queries)

    def __len__(self) -> int:
        return len(self.rows)

    def probabilities(self, model: FashionBert) -> tuple[np.ndarray, np.ndarray]:
        """[N] of photos with their own title, [N] with the other's."""
        both = self._ask(model, np.tile(self.rows, 2), np.concatenate([self.rows, self.others]), None)
        return both[: len(self)], both[len(self) :]

    def query_probabilities(self, model: FashionBert) -> tuple[np.ndarray, np.ndarray]:
        """[N] of products for which a query was made, [N] of the others for the same query."""
        products = np.concatenate([self.rows, self.others])
        ids, mask = (np.tile(array, (2, 1)) for array in self.query_tokens)
        both = self._ask(model, products, products, (ids, mask))
        return both[: len(self)], both[len(self) :]

    def report(self, model: FashionBert, among: np.ndarray | None = None) -> dict[str, Any]:
        """The figures by name; `among` [P] bool leaves some products in. {} where nothing is left."""
        kept = np.ones(len(self), bool) if among is None else among[self.examples.product[self.rows]]
        if not kept.any():
            return {}
        reports = {"title": match_report(*(found[kept] for found in self.probabilities(model)))}
        if self.queries is not None:
            reports["query"] = match_report(*(found[kept] for found in self.query_probabilities(model)))
        return {name: asdict(report) for name, report in reports.items()}

    def _ask(
        self, model: FashionBert, photos: np.ndarray, titles: np.ndarray, queries: tuple[np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        examples = self.examples
        tokens = examples.input_ids, examples.attention_mask
        return match_probabilities(
            model, examples.store.photos, tokens, examples.photo[photos], examples.product[titles], queries
        )
