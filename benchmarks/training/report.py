"""Tables of suite training, made from training.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import Rows, markdown, provenance
from benchmarks.results import read


def training_table(rows: Rows) -> str:
    """Examples a second of everything, and what an epoch of the published size would take."""
    lines: list[list[Any]] = []
    for row in rows:
        if row["measured"] == "stage":
            what = f"{row['system']}, {row['stage']}, {row['examples']}"
            lines.append([what, row["examples_per_second"], row.get("loader_share"), None])
        elif row["measured"] == "head":
            what = f"head on cached embeddings, {row['classes']:,} classes, {row['loss']}"
            lines.append([what, row["examples_per_second"], None, row.get("gpu_memory_mb", row["memory_mb"])])
        elif row["measured"] == "scaling law":
            lines.append([f"extrapolated: {row['extrapolated']}, {row['extrapolated_seconds']:,.0f} s", *[None] * 3])
    return markdown(("what", "examples/s", "share of time waiting for the loader", "peak memory MB"), lines)


def scaling_table(rows: Rows) -> str:
    """The head at every number of classes, and the law fitted through them."""
    lines = [
        [row["classes"], row["examples_per_second"], row["memory_mb"]] for row in rows if row["measured"] == "scaling"
    ]
    text = markdown(("classes", "examples/s", "peak memory MB"), lines)
    for row in rows:
        if row["measured"] == "scaling law":
            text += (
                f"\n\nAn item takes {row['microseconds_per_item']:.3g} µs + "
                f"{row['microseconds_per_item_and_1000_classes']:.3g} µs for every 1,000 classes "
                f"(worst misfit {100 * row['worst_misfit']:.0f} %)."
            )
    return text


def write_report(path: Path) -> list[Path]:
    """Write training.md beside training.json; returns what was written."""
    record = read(path)
    rows = record["rows"]
    report = path.with_suffix(".md")
    parts = ["# Training", provenance(record), training_table(rows), scaling_table(rows)]
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [report]
