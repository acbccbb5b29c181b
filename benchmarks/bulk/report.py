"""Tables of suite bulk, and the page about a hundred million products: arithmetic on what was measured, no estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.markdown import Rows, markdown, provenance
from benchmarks.results import NOT_MEASURED, RESULTS, read

PRODUCTS = 100_000_000
NIGHT_HOURS = 8
VIT = "ViT-B/32"
ID_BYTES = 24  # of a hash in catalogue/seen.py, at most


def goal(text: str, value: float | None, base: float | None, limit: float) -> dict[str, Any]:
    """A ratio that is to be at least so much."""
    row: dict[str, Any] = {"measured": "goal", "goal": text, "limit": f"≥ {limit:g}", "ratio": NOT_MEASURED}
    if value is not None and base is not None:
        row |= {"ratio": value / base, "reached": value / base >= limit}
    return row


def bulk_table(rows: Rows) -> str:
    """The goals."""
    lines = [[row["goal"], row["limit"], row["ratio"], row.get("reached")] for row in rows if row["measured"] == "goal"]
    for row in rows:
        if row["measured"] == "kills":
            what = f"the same bytes after kill -9, {row['kills']} times, each time resumed"
            lines.append([what, "all", row.get("before_the_end", row.get("error")), row["same_bytes"]])
    return markdown(("goal", "limit", "measured", "reached"), lines)


def rates_table(rows: Rows) -> str:
    """Products a second of every way, and what a job does without a model."""
    lines: list[list[Any]] = []
    for row in rows:
        if row["measured"] == "rate":
            lines.append([row["way"], row.get("products_per_second", row.get("error"))])
        elif row["measured"] == "job alone":
            what = f"job whose model costs nothing, {row['size']:,} rows, {row['memory_mb']:.0f} MB"
            lines.append([what, row["rows_per_second"]])
        elif row["measured"] == "reading and hashing":
            lines.append(["reading and hashing alone", row["rows_per_second"]])
    return markdown(("way", "products/s"), lines)


def scale_table(rows: Rows, serving: Rows) -> str:
    """What `PRODUCTS` cost, by size of encoder."""
    rate = {row["way"]: row["products_per_second"] for row in rows if "products_per_second" in row}
    (sizes,) = (row for row in rows if row["measured"] == "sizes")
    (reading,) = (row["rows_per_second"] for row in rows if row["measured"] == "reading and hashing")
    largest = max((row for row in rows if row["measured"] == "job alone"), key=lambda row: row["size"])
    alone = largest["rows_per_second"]
    vit = [
        row["products_per_second"]
        for row in serving
        if (row.get("subject"), row.get("client"), row.get("loop")) == (VIT, "none", "closed")
        and "products_per_second" in row
    ]
    lines: list[list[Any]] = []
    for name, value in (
        ("small encoders, in process", rate.get("bulk in process")),
        ("small encoders, through a server", rate.get("bulk through a server")),
        (f"{VIT}, bare loop in process", max(vit, default=None)),
    ):
        if value is None:
            lines.append([name, *[NOT_MEASURED] * 5])
            continue
        hours = PRODUCTS / value / 3600
        machines = hours / NIGHT_HOURS
        network = sizes["request_bytes_a_row"] * value * machines * 8 / 1e6
        lines.append([name, value, hours, machines, network, reading / value])
    page = markdown(
        ("model", "products/s a machine", "machine hours", f"machines for {NIGHT_HOURS} h", "Mbit/s of requests",
         "machines that one reader feeds"),
        lines,
    )  # fmt: skip
    gigabytes = {name: PRODUCTS * sizes[f"{name}_bytes_a_row"] / 1e9 for name in ("feed", "part", "result")}
    return (
        f"{page}\n\n"
        f"A machine is the one measured. On disk: the feed {gigabytes['feed']:,.0f} GB at "
        f"{sizes['feed_bytes_a_row']:,.0f} bytes a product, the parts {gigabytes['part']:.1f} GB, the result "
        f"{gigabytes['result']:.1f} GB. Memory: {largest['memory_mb']:,.0f} MB of the job at {largest['size']:,} rows, "
        f"and beyond that at most {ID_BYTES} bytes a product for its id: {PRODUCTS * ID_BYTES / 1e9:.1f} GB.\n\n"
        f"One process reads and hashes {reading:,.0f} such products a second: {PRODUCTS / reading / 3600:.1f} h for "
        f"all. A whole job, model aside, does {alone:,.0f} of next to no bytes: {PRODUCTS / alone / 3600:.1f} h."
    )


def write_report(path: Path) -> Path:
    """Writes the page beside the results."""
    record = read(path)
    rows = record["rows"]
    other = RESULTS / "serving.json"
    serving = read(other)["rows"] if other.is_file() else []
    page = path.with_name("scale.md")
    page.write_text(
        "# A hundred million products\n\n"
        f"{scale_table(rows, serving)}\n\n"
        "The model bends first: it is all of the machine hours, and they shrink with machines as long as one reader "
        "feeds them. The reader bends next, at the number of machines in the last column: then the feed wants to be "
        "several files, each a job with a result of its own. The manifest is written anew with every part, so that "
        "parts want to grow with the feed (`--part-rows 100000` keeps it below 100 kB). Ids of other files are not "
        "looked at by a job of its own: those that repeat across jobs are found by whoever joins the results.\n\n"
        f"{rates_table(rows)}\n\n{provenance(record)} {VIT} is from suite serving.\n",
        encoding="utf-8",
    )
    return page
