"""What benchmarks/quality/colours.py measured, in words and as a table; the README needs no torch for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.markdown import markdown

Row = dict[str, Any]


def summary(row: Row) -> str:
    """A row of accuracies on one line."""
    shares = (f"{d} {row[d]['images']:.4f} / {row[d]['products']:.4f}" for d in ("arg_max", "one_to_one"))
    return f"{row['feed']:16} {matcher_of(row):32} seed {row['seed']} {row['asked']:24} {'  '.join(shares)}"


def matcher_of(row: Row) -> str:
    """The matcher's name, with the recipe's stage."""
    served = ", served" if row.get("served") else ""
    return f"{row['matcher']}, {row['stage']}{served}" if "stage" in row else str(row["matcher"])


def matching_table(rows: list[Row]) -> str:
    """Markdown: shares of photos / of whole products right, means over the seeds; and what the labels allow."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "one_to_one" in row:
            cells.setdefault((row["feed"], row["asked"], matcher_of(row)), []).append(row)
    lines = []
    for (feed, asked, matcher), runs in sorted(cells.items(), key=lambda cell: cell[0][:2]):
        shares = [
            " / ".join(f"{np.mean([run[decode][share] for run in runs]):.3f}" for share in ("images", "products"))
            for decode in ("arg_max", "one_to_one")
        ]
        spread = np.std([run["one_to_one"]["images"] for run in runs])
        lines.append((feed, asked, matcher, *shares, f"{spread:.3f} ({len(runs)})" if len(runs) > 1 else "1 run"))
    columns = ("feed", "test products", "matcher", "arg-max", "one-to-one", "spread")
    limits = [limit_sentence(row) for row in rows if "doubted" in row]
    return "\n\n".join(
        (
            markdown(columns, lines),
            "Photos / whole products right. recipe: what `shelfwise train match-colours` gives, by stage. Units and\n"
            "parts: heads of one budget on the frozen contrastive towers. spread: of the one-to-one photos over seeds.",
            *limits,
        )
    )


def limit_sentence(row: Row) -> str:
    """What the labels of a feed allow, in words."""
    doubted, repeated, named = row["doubted"], row["repeated"], row["repeated_named"]
    return (
        f"Labels of {row['feed']}: of {repeated['pairs']:,} pairs of listings with the same pixels "
        f"{repeated['disagree']:.1%} name different colours\n({named['disagree']:.1%} of {named['pairs']:,} where both "
        f"titles name the colour), so that no system that sees one photo is right on\nmore than "
        f"{repeated['limit']:.1%} ({named['limit']:.1%}) of such photos. In {doubted['products']:.1%} of the products "
        f"classifier and matcher both doubt a label,\nsure of the same other one; in {doubted['both_wrong']:.1%} "
        f"neither agrees with the labels. Of the matcher's {doubted['mistakes']} wrong products "
        f"{doubted['mistakes_doubted']} have a\ndoubted label. Of labels exchanged on purpose they doubt "
        f"{doubted['sensitivity']:.1%}."
    )
