"""The README's table of how long `match_colours` takes, from the results of benchmarks/serving/colours.py."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import markdown

PARTS = ("queue_ms", "input_ms", "infer_ms", "output_ms", "other_ms", "mean_ms")


def colours_table(rows: list[dict[str, Any]]) -> str:
    """Latency by photos and labels, where one request's time goes, and products a second of different sizes at once."""
    sizes = [row for row in rows if "served_p50_ms" in row]
    steps = [row for row in rows if "step" in row]
    mixed = [row for row in rows if "matcher" in row]
    figures = ("served_p50_ms", "served_p99_ms", "in_process_p50_ms", "in_process_p99_ms", "p50_ratio")
    tables = [
        markdown(
            ["photos × labels", "served p50 ms", "p99", "in process p50", "p99", "ratio of p50"],
            [[f"{row['photos']} × {row['labels']}", *(row[name] for name in figures)] for row in sizes],
        )
    ]
    if steps:
        size = f"{steps[0]['photos']} × {steps[0]['labels']}"
        tables.append(
            markdown(
                [f"{size}, mean ms in", *(part.removesuffix("_ms") for part in PARTS[:-1]), "all"],
                [[row["step"], *(row.get(part) for part in PARTS)] for row in steps],
            )
        )
    if mixed:
        tables.append(
            markdown(
                ["2–12 photos × 2–20 labels, 16 callers: the matcher runs", "products/s", "photos/s", "mean batch"],
                [[r["matcher"], r["products_per_second"], r["photos_per_second"], r["mean_batch"]] for r in mixed],
            )
        )
    return "\n\n".join(tables)
