"""Tables and plot of the growth of cost, made from growth.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import Rows, markdown, provenance
from benchmarks.results import read


def growth_table(rows: Rows) -> str:
    """Smallest and largest size of everything, and the fitted exponents."""
    lines: list[list[Any]] = []
    for row in rows:
        if "time_exponent" not in row:
            continue
        what = row["measured"].removesuffix(": exponents")
        sizes = [part for part in rows if part["measured"] == what and "seconds" in part]
        first, last = sizes[0], sizes[-1]
        lines.append(
            [
                what,
                f"{first['size']:,} → {last['size']:,} {row['unit']}",
                f"{1e3 * first['seconds']:,.3g} → {1e3 * last['seconds']:,.5g}",
                row["time_exponent"],
                row["time_exponent_of_the_last_step"],
                last.get("memory_mb"),
                row.get("memory_exponent"),
            ]
        )
    columns = ("what", "size", "ms", "time exponent", "of the last step", "memory at the largest, MB")
    return markdown((*columns, "memory exponent"), lines)


def sizes_table(rows: Rows) -> str:
    """Every size."""
    lines = [
        [row["measured"], row["size"], row["unit"], row.get("seconds"), row.get("memory_mb"), row.get("error", "")]
        for row in rows
        if "size" in row
    ]
    return markdown(("what", "size", "of", "seconds", "memory MB", "error"), lines)


def write_report(path: Path) -> list[Path]:
    """Write growth.md and growth.png beside growth.json; returns what was written."""
    record = read(path)
    rows = record["rows"]
    report = path.with_suffix(".md")
    text = f"# Growth of cost\n\n{provenance(record)}\n\n{growth_table(rows)}\n\n{sizes_table(rows)}\n"
    report.write_text(text, encoding="utf-8")
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return [report]
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for what in dict.fromkeys(row["measured"] for row in rows if "seconds" in row):
        points = [(row["size"], row["seconds"]) for row in rows if row["measured"] == what and "seconds" in row]
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=what)
    axes.set(xlabel="size", ylabel="seconds")
    axes.legend(fontsize=8)
    figure.tight_layout()
    plot = path.with_suffix(".png")
    figure.savefig(plot, dpi=110)
    plt.close(figure)
    return [report, plot]
