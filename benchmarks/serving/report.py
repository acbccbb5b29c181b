"""Tables and plots of suite serving, made from serving.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import Rows, markdown, provenance
from benchmarks.results import NOT_MEASURED, read

PARTS = ("queue", "input", "infer", "output", "other")


def goals_table(rows: Rows) -> str:
    """The goals, what was reached, whether that is enough."""
    lines: list[list[Any]] = []
    for row in rows:
        if row["measured"] == "goal":
            lines.append([row["subject"], row["goal"], row["limit"], row["ratio"], row.get("reached")])
        elif row["measured"] == "JPEG decoding":
            text = f"JPEG 1000×1000 → 224×224 over plain Pillow (within {row['mean_pixel_difference']:.2g}/255)"
            lines.append(["", text, "≥ 5", row["ratio"], row["reached"]])
    return markdown(("encoders", "goal", "limit", "measured", "reached"), lines)


def servers_table(rows: Rows) -> str:
    """In-process, Triton and the rivals at concurrency 1 and 8, a product a request."""
    lines: list[list[Any]] = []
    loads = [row for row in rows if row["measured"] == "load"]
    for subject in dict.fromkeys(row["subject"] for row in loads):
        for server in dict.fromkeys(row["server"] for row in loads if row["subject"] == subject):
            own = [
                row
                for row in loads
                if (row["subject"], row["server"], row.get("batch", 1)) == (subject, server, 1)
                and row.get("client", "") in ("none", "prepared requests", "")
                and row.get("loop", "closed") == "closed"
            ]
            failed = next((row["error"] for row in own if "error" in row), None)
            if failed is not None:
                lines.append([subject, server, f"{NOT_MEASURED}: {failed.splitlines()[0][:80]}", *[None] * 5])
                continue
            at = {row["concurrency"]: row for row in own}
            one, eight = at.get(1, {}), at.get(8, {})
            figures = [one.get("p50_ms"), one.get("products_per_second")]
            figures += [eight.get(name) for name in ("products_per_second", "p50_ms", "p99_ms", "server_memory_mb")]
            lines.append([subject, server, *figures])
    columns = ("encoders", "server", "p50 ms at 1", "products/s at 1")
    return markdown((*columns, "products/s at 8", "p50 ms at 8", "p99 ms at 8", "memory MB"), lines)


def breakdown_table(rows: Rows) -> str:
    """Where a request's time goes, a line a step."""
    lines = [
        [
            row["subject"],
            row["concurrency"],
            row["step"],
            *(row.get(f"{part}_ms") for part in PARTS),
            row.get("mean_batch"),
        ]
        for row in rows
        if row["measured"] == "breakdown" and "error" not in row
    ]
    return markdown(("encoders", "concurrency", "step", *(f"{part} ms" for part in PARTS), "rows a batch"), lines)


def closed_table(rows: Rows) -> str:
    """Triton under every closed-loop load."""
    figures = ("products_per_second", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "server_cores", "client_cores")
    lines = [
        [
            row["subject"],
            row["client"],
            row["batch"],
            row["concurrency"],
            *(row.get(name) for name in figures),
            row["noise"].get("p50_ms"),
            row.get("server_memory_mb"),
        ]
        for row in rows
        if row.get("loop") == "closed" and row["server"] == "Triton" and "error" not in row
    ]
    columns = ("encoders", "client", "rows a request", "concurrency", "products/s", "p50 ms", "p90 ms", "p99 ms")
    return markdown((*columns, "p99.9 ms", "server cores", "client cores", "noise of p50", "memory MB"), lines)


def open_table(rows: Rows) -> str:
    """Triton under Poisson arrivals."""
    figures = ("products_per_second", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "server_cores")
    lines = [
        [row["subject"], row["share_of_capacity"], *(row.get(name) for name in figures)]
        for row in rows
        if row.get("loop") == "open" and "error" not in row
    ]
    columns = ("encoders", "share of capacity", "products/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "server cores")
    return markdown(columns, lines)


def sweep_table(rows: Rows) -> str:
    """Every setting of the sweep, and the recommended fragment of config.pbtxt."""
    settings = ("instances", "threads", "delay_microseconds", "in_turns")
    columns = (*settings, "p50_at_1_ms", "p50_at_8_ms", "products_per_second_at_8")
    lines = [[row.get(name) for name in columns] for row in rows if row["measured"] == "sweep"]
    heads = ("instances", "threads", "longest queue delay µs", "steps take turns", "p50 ms at 1", "p50 ms at 8")
    text = markdown((*heads, "products/s at 8"), lines)
    for row in rows:
        if row["measured"] == "sweep, recommended":
            text += f"\n\nRecommended for the encoders of {row['subject']}:\n\n```\n{row['fragment']}```"
    return text


def failures(rows: Rows) -> str:
    """What could not be measured, and why."""
    lines = [
        f"- {row.get('subject', '')} {row.get('server', row['measured'])}: {row['error'].splitlines()[0]}"
        for row in rows
        if "error" in row
    ]
    return "\n".join(lines) or "Nothing failed."


SECTIONS = {
    "Goals": goals_table,
    "Servers": servers_table,
    "Closed loop": closed_table,
    "Open loop, Poisson arrivals": open_table,
    "Where a request's time goes": breakdown_table,
    "Instances, threads, queue delay": sweep_table,
    "Failures": failures,
}


def write_report(path: Path) -> list[Path]:
    """Write serving.md and the plots beside serving.json; returns what was written."""
    record = read(path)
    rows = record["rows"]
    parts = ["# Serving", provenance(record)]
    parts += [f"## {title}\n\n{table(rows)}" for title, table in SECTIONS.items()]
    report = path.with_suffix(".md")
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    written = [report]
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return written
    matplotlib.use("Agg")
    return [*written, _plot_curves(rows, path.parent), _plot_breakdown(rows, path.parent)]


def _plot_curves(rows: Rows, folder: Path) -> Path:
    """Throughput against latency, a panel a subject, a line a server or batch size."""
    import matplotlib.pyplot as plt

    loads = [row for row in rows if row.get("loop") == "closed" and "error" not in row]
    subjects = list(dict.fromkeys(row["subject"] for row in loads))
    figure, panels = plt.subplots(1, max(1, len(subjects)), figsize=(5.5 * max(1, len(subjects)), 4), squeeze=False)
    for panel, subject in zip(panels[0], subjects, strict=False):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in loads:
            if row["subject"] == subject and row["client"] in ("none", "prepared requests"):
                name = row["server"] + (f", {row['batch']} rows a request" if row["batch"] > 1 else "")
                curves.setdefault(name, []).append((row["products_per_second"], row["p50_ms"]))
        for number, (name, points) in enumerate(curves.items()):
            panel.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=3,
                label=name,
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
            )
        panel.set(yscale="log", xlabel="products a second", ylabel="median latency, ms", title=subject)
        panel.legend(fontsize=6)
    figure.tight_layout()
    path = folder / "serving-curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _plot_breakdown(rows: Rows, folder: Path) -> Path:
    """Stacked bars: the parts of each step, a bar a subject and concurrency."""
    import matplotlib.pyplot as plt

    found = [row for row in rows if row["measured"] == "breakdown" and "error" not in row]
    bars = list(dict.fromkeys((row["subject"], row["concurrency"]) for row in found))
    steps = list(dict.fromkeys(row["step"] for row in found))
    shades = {"queue": 0.25, "input": 0.45, "infer": 1.0, "output": 0.6, "other": 0.8}
    figure, panels = plt.subplots(1, max(1, len(bars)), figsize=(2.6 * max(1, len(bars)) + 1.5, 4.2), squeeze=False)
    for panel, (subject, concurrency) in zip(panels[0], bars, strict=False):
        bottom = 0.0
        for number, step in enumerate(steps):
            row = next(
                (
                    row
                    for row in found
                    if (row["subject"], row["concurrency"], row["step"]) == (subject, concurrency, step)
                ),
                {},
            )
            start = bottom
            for part, shade in shades.items():
                height = row.get(f"{part}_ms", 0.0)
                panel.bar(0, height, bottom=bottom, color=f"C{number}", alpha=shade, width=0.6)
                bottom += height
            panel.text(0.33, (start + bottom) / 2, step, fontsize=7, va="center")
        panel.set(title=f"{subject}, {concurrency} at a time", ylabel="ms a request", xticks=[], xlim=(-0.4, 1.2))
        panel.title.set_fontsize(8)
    figure.suptitle("pale to dark: queue, input, output, infer", fontsize=7, y=0.02)
    figure.tight_layout()
    path = folder / "serving-breakdown.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
