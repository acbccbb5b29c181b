"""Roofline of the kernels, made from their JSON files alone: gigabytes a second over the bytes that a call must move.

These kernels do a handful of operations a byte, so the roof is the memory's: a copy of the same bytes, measured in the
same run. What lies on the roof moves each byte once; half as high is twice the traffic, or waiting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.results import NOT_MEASURED, read


def plot(path: Path) -> Path | None:
    """Draw the rows of a file of kernel results beside it, as PNG; None where no row was measured on a GPU."""
    rows: list[dict[str, Any]] = [
        row for row in read(path)["rows"] if row["median_us"] != NOT_MEASURED and "gbytes_per_s" in row
    ]
    if not rows:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def megabytes(row: dict[str, Any]) -> float:
        return row["gbytes_per_s"] * row["median_us"] / 1e3

    figure, axes = plt.subplots(figsize=(7, 4.5))
    roof = sorted({(megabytes(row), 1e3 * megabytes(row) / row["floor_us"]) for row in rows if "floor_us" in row})
    if roof:
        axes.plot(*zip(*roof, strict=True), color="black", label="copy of the same bytes")
    for number, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        own = [row for row in rows if row["variant"] == variant]
        heights = [row["gbytes_per_s"] for row in own]
        axes.scatter([megabytes(row) for row in own], heights, s=18, color=f"C{number % 10}", label=variant)
    axes.set(xscale="log", xlabel="megabytes a call must move", ylabel="gigabytes a second", ylim=(0, None))
    axes.legend(fontsize=6)
    figure.tight_layout()
    drawn = path.with_name(f"{path.stem}-roofline.png")
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    return drawn
