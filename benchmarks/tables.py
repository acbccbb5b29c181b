"""Tables and plots of the README, written from the JSON files of results: `python benchmarks/run.py tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`; what is between them is the command's alone, and
a test compares it with the results. Each suite says in its own module how its tables are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import NOT_MEASURED, RESULTS, ROOT, read

README = ROOT / "README.md"
Rows = list[dict[str, Any]]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three significant digits, None as nothing."""
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One entry of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def provenance(record: dict[str, Any]) -> str:
    """Where figures come from, in a sentence."""
    machine = record["machine"]
    place = machine.get("gpu", f"{machine['cores']} cores of {machine['processor']}")
    return f"Measured on {place} at {record['commit'][:10]}, {record['date'][:10]}."


def readme_tables() -> dict[str, tuple[str, Callable[[Rows], str]]]:
    """Name of a table in the README -> the file of results and how it is made from its rows."""
    from benchmarks.growth.report import growth_table
    from benchmarks.quality.colour_table import colours_table
    from benchmarks.quality.labels import labels_table
    from benchmarks.serving import report as serving
    from benchmarks.training.report import training_table

    return {
        "serving-goals": ("serving", serving.goals_table),
        "serving-servers": ("serving", serving.servers_table),
        "serving-breakdown": ("serving", serving.breakdown_table),
        "training": ("training", training_table),
        "growth": ("growth", growth_table),
        "labels": ("labels", labels_table),
        "colours": ("colours", colours_table),
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
