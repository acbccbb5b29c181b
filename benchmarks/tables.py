"""Tables and plots of the README, written from the JSON files of results: `python benchmarks/run.py tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`; what is between them is the command's alone, and
a test compares it with the results. Each suite says in its own module how its tables are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.export.categorize import accuracy_table
from benchmarks.export.match_colours import forms_table
from benchmarks.export.speed import speed_table
from benchmarks.growth.report import growth_table
from benchmarks.markdown import Rows, provenance
from benchmarks.quality.colour_table import matching_table
from benchmarks.quality.labels import labels_table
from benchmarks.results import NOT_MEASURED, RESULTS, ROOT, read
from benchmarks.serving import report as serving
from benchmarks.serving.colours_report import colours_table
from benchmarks.training.report import training_table

README = ROOT / "README.md"


def readme_tables() -> dict[str, tuple[str, Callable[[Rows], str]]]:
    """Name of a table in the README -> the file of results and how it is made from its rows."""
    return {
        "serving-goals": ("serving", serving.goals_table),
        "serving-servers": ("serving", serving.servers_table),
        "serving-breakdown": ("serving", serving.breakdown_table),
        "serving-colours": ("serving-colours", colours_table),
        "training": ("training", training_table),
        "growth": ("growth", growth_table),
        "labels": ("labels", labels_table),
        "export-accuracy": ("export_categorize", accuracy_table),
        "export-speed": ("export_speed", speed_table),
        "export-match-colours": ("export_match_colours", forms_table),
        "colours": ("colours", matching_table),
    }


def filled(readme: str, results: Path = RESULTS) -> str:
    """A README with its tables as the results have them.

    Raises:
        ValueError: a marker names no table, or has no end.
    """
    tables = readme_tables()

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise ValueError(f"the README has a table {name!r}; there are {', '.join(tables)}")
        file, make = tables[name]
        path = results / f"{file}.json"
        content = NOT_MEASURED
        if path.is_file():
            record = read(path)
            content = f"{make(record['rows'])}\n\n{provenance(record)}"
        return f"<!-- table {name} -->\n{content}\n<!-- end {name} -->"

    pattern = re.compile(r"<!-- table (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)
    text = pattern.sub(table, readme)
    if len(re.findall(r"<!-- table ", readme)) != len(pattern.findall(readme)):
        raise ValueError("a table of the README lacks its end marker")
    return text


def write_readme(results: Path = RESULTS, readme: Path = README) -> None:
    """Bring the README's tables up to date."""
    text = filled(readme.read_text(encoding="utf-8"), results)
    readme.write_text(text, encoding="utf-8")
