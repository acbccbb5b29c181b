"""Markdown of the suites' tables: what the reports beside the results and the README share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
