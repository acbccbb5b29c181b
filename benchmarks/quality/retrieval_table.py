"""The tables of the suites retrieval and kagl; apart from them, which need torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.markdown import Rows, markdown

WAYS = {"image → text": "image to text", "text → image": "text to image"}
ATTRIBUTES = {"colour": "base_colour", "brand": "brand", "sub-category": "sub_category"}


def retrieval_table(rows: Rows) -> str:
    """Recall of each variant, mean ± standard deviation over its seeds, and its gates."""
    by_variant: dict[str, Rows] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    header = ["variant", "seeds"]
    for way in WAYS:
        header += [f"{way} R@1", "R@10", "R@1 of 100"]
    lines = []
    for variant, runs in by_variant.items():
        line = [variant, str(len(runs))]
        for way in WAYS.values():
            line += [spread([run[way][f"recall_at_{k}"] for run in runs]) for k in (1, 10)]
            line.append(spread([run[f"{way}, of 100"]["recall_at_1"]["mean"] for run in runs]))
        gates = ", ".join(f"{group} {gate:.2f}" for group, gate in runs[0].get("gates", {}).items())
        lines.append([*line, spread([run["sum_of_recalls"] for run in runs], 1), gates])
    key = (
        "Test split, all its products as candidates; of 100: the product and a hundred of its sub-category. SumR: the\n"
        "six recalls at 1, 5 and 10, in percent. Gates of the first seed."
    )
    return f"{markdown([*header, 'SumR', 'gates'], lines)}\n\n{key}"


def kagl_table(rows: Rows) -> str:
    """Titles to images beside the published models, and attributes to products."""
    header = ["model", "R@1", "R@10", "MRR", *(f"{name} P@1 / MRR" for name in ATTRIBUTES)]
    lines = []
    for row in rows:
        name = f"{row['model']} (published, zero-shot)" if row["zero_shot"] else row["model"]
        figures = [f"{row[figure]:.3f}" for figure in ("recall_at_1", "recall_at_10", "mrr")]
        lines.append([name, *figures, *attributes(row.get("attributes", {}))])
    return markdown(header, lines)


def attributes(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """P@1 and MRR of each attribute's values, "" for those that were not asked."""
    known = [found.get(group) for group in ATTRIBUTES.values()]
    return [f"{group['precision_at_1']:.2f} / {group['mrr']:.2f}" if group else "" for group in known]


def spread(values: Sequence[float], places: int = 3) -> str:
    """Mean ± standard deviation; of one value the value alone."""
    mean = f"{statistics.mean(values):.{places}f}"
    return f"{mean} ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else mean
