"""Tables of the READMEs, written from the JSON files of results: `python benchmarks/run.py tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`; what is between them is the command's alone, and
a test compares it with the results. Each suite says in its own module how its tables are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.bulk.report import bulk_table
from benchmarks.export.categorize import accuracy_table
from benchmarks.export.match_colours import forms_table
from benchmarks.export.speed import speed_table
from benchmarks.growth.report import growth_table
from benchmarks.kernels.report import cpu_table, label_kl_table, matcher_table
from benchmarks.markdown import Rows, provenance
from benchmarks.quality.answers import answers_table
from benchmarks.quality.colour_table import matching_table
from benchmarks.quality.fashionbert_table import fashionbert_table
from benchmarks.quality.labels import labels_table
from benchmarks.quality.retrieval_table import kagl_table, retrieval_table
from benchmarks.results import NOT_MEASURED, RESULTS, ROOT, read
from benchmarks.serving import report as serving
from benchmarks.serving.colours_report import colours_table
from benchmarks.training.report import training_table

PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")


def page_tables() -> dict[str, tuple[str, Callable[[Rows], str]]]:
    """Name of a table -> the file of results and how it is made from its rows."""
    return {
        "serving-goals": ("serving", serving.goals_table),
        "serving-servers": ("serving", serving.servers_table),
        "serving-breakdown": ("serving", serving.breakdown_table),
        "serving-colours": ("serving-colours", colours_table),
        "training": ("training", training_table),
        "growth": ("growth", growth_table),
        "bulk": ("bulk", bulk_table),
        "kernel-1": ("h200/label_kl", label_kl_table),
        "kernel-2": ("h200/matcher", matcher_table),
        "kernel-1-cpu": ("label_kl_cpu", cpu_table),
        "labels": ("labels", labels_table),
        "answers": ("answers", answers_table),
        "retrieval": ("retrieval", retrieval_table),
        "kagl": ("kagl", kagl_table),
        "fashionbert": ("fashionbert", fashionbert_table),
        "export-accuracy": ("export_categorize", accuracy_table),
        "export-speed": ("export_speed", speed_table),
        "export-match-colours": ("export_match_colours", forms_table),
        "colours": ("colours", matching_table),
    }


def filled(page: str, results: Path = RESULTS) -> str:
    """A page with its tables as the results have them.

    Raises:
        ValueError: a marker names no table, or has no end.
    """
    tables = page_tables()

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise ValueError(f"the page has a table {name!r}; there are {', '.join(tables)}")
        file, make = tables[name]
        path = results / f"{file}.json"
        content = NOT_MEASURED
        if path.is_file():
            record = read(path)
            content = f"{make(record['rows'])}\n\n{provenance(record)}"
        return f"<!-- table {name} -->\n{content}\n<!-- end {name} -->"

    pattern = re.compile(r"<!-- table (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)
    text = pattern.sub(table, page)
    if len(re.findall(r"<!-- table ", page)) != len(pattern.findall(page)):
        raise ValueError("a table of the page lacks its end marker")
    return text


def write_pages() -> None:
    """Bring the tables of all pages up to date."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
