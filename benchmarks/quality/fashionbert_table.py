"""The table of the FashionBERT suite: matching, ranking by photo and title, re-ranking by query, audit; and its key.

Kept apart from the suite, which needs torch: tables are written and tested without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import Rows, markdown

HEADER = (
    "variant",
    "accuracy",
    "AUC",
    "AUC unseen",
    "AUC queries",
    "R@1 text → photo",
    "R@1 photo → text",
    "SumR",
    "re-ranked R@1",
    "MRR",
    "audit",
    "ms",
)
KEY = """\
accuracy, AUC: own title against another of the same type, over the test split; unseen: where neither title nor photo \
occurs in training; queries: does the product answer a made query, or another of its type? R@1, SumR: sample 100, five \
draws of {queries} queries, in brackets by the entrance alone; re-ranked, MRR: made queries, the right product among \
100, likewise; audit: planted swaps that are in the first 5 %; ms: a candidate on one core, patch features included."""


def fashionbert_table(rows: Rows) -> str:
    """A line a variant, and what the columns mean."""
    queries = rows[0]["sample_100"]["queries"] if rows else 0
    return f"{markdown(HEADER, [line(row) for row in rows])}\n\n{KEY.format(queries=queries)}"


def line(row: Mapping[str, Any]) -> list[str]:
    """A variant's figures."""
    test, ranked, queried = row["test"], row["sample_100"], row["reranking"]

    def both(figure: str, places: int = 3) -> str:
        return f"{queried['matcher'][figure]:.{places}f} ({queried['entrance'][figure]:.{places}f})"

    def first(direction: str) -> str:
        own, entrance = (ranked[way][direction]["recall_at_1"] for way in ("matcher", "entrance"))
        return f"{own['mean']:.3f} ± {own['deviation']:.3f} ({entrance['mean']:.3f})"

    return [
        row["variant"],
        f"{test['title']['accuracy']:.3f}",
        f"{test['title']['auc']:.3f}",
        f"{test['title, unseen']['auc']:.3f}",
        f"{test['query']['auc']:.3f}",
        first("text to photo"),
        first("photo to text"),
        f"{ranked['matcher']['sum_r']:.1f} ({ranked['entrance']['sum_r']:.1f})",
        both("recall_at_1"),
        both("mrr"),
        f"{row['audit_found']:.0%}",
        f"{row['milliseconds_per_candidate']:.2f}",
    ]
