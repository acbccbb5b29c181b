"""Two runs beside each other: ratios of every figure that carries its noise, and which of them changed.

A change counts when it is larger than the spreads that both runs measured, added up, and than two per cent, whatever
part of the machine's own change is taken out: rows say how fast the machine was around them (machine_speed.py), by one
kind of work, and a figure follows that speed wholly, partly or not at all. Rows belong together when all that describes
them is equal: every field that is neither a figure with noise nor derived from one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import read

SMALLEST_CHANGE = 0.02
Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One figure in both runs.

    Attributes:
        noise: what a ratio must differ from 1 by to be a change.
        machine: the ratio that the figure would have for a machine faster or slower by as much as this one was.
    """

    row: str
    figure: str
    before: float
    after: float
    noise: float
    machine: float = 1.0

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def beyond_noise(self) -> bool:
        explained = min(max(self.ratio, min(1.0, self.machine)), max(1.0, self.machine))
        return abs(self.ratio / explained - 1) > self.noise

    def __str__(self) -> str:
        mark = "  CHANGED" if self.beyond_noise else ""
        spread = f"noise {100 * self.noise:.0f} %, machine x{self.machine:.3f}"
        figures = f"{self.before:10.4g} -> {self.after:10.4g}  x{self.ratio:.3f} ({spread})"
        return f"{self.row:70} {self.figure:22} {figures}{mark}"


def identity(row: Row) -> tuple[tuple[str, str], ...]:
    """What describes a row: its texts, truth values and whole numbers that are settings, in the order of names."""
    kept = {
        name: value
        for name, value in row.items()
        if name not in row["noise"] and name not in ("requests", "reached") and isinstance(value, str | int | bool)
    }
    # Shares and sizes of a load are settings too, and are written as fractions.
    kept |= {name: row[name] for name in ("share_of_capacity",) if name in row}
    return tuple(sorted((name, str(value)) for name, value in kept.items() if value != "not measured"))


def changes(before: list[Row], after: list[Row]) -> Iterator[Change]:
    """Every figure that both runs measured."""
    known = {identity(row): row for row in before if row.get("noise")}
    for row in after:
        if not row.get("noise"):
            continue
        other = known.get(identity(row))
        if other is None:
            continue
        name = " ".join(value for _, value in identity(row))
        for figure in row["noise"]:
            if figure in other["noise"] and other[figure]:
                noise = max(SMALLEST_CHANGE, row["noise"][figure] + other["noise"][figure])
                yield Change(name, figure, other[figure], row[figure], noise, of_the_machine(figure, other, row))


def of_the_machine(figure: str, before: Row, after: Row) -> float:
    """The ratio of a figure of two rows that the speed of the machine alone would give; 1 where it does not matter."""
    if "machine_speed" not in before or "machine_speed" not in after:
        return 1.0
    faster = float(after["machine_speed"] / before["machine_speed"])
    if figure.endswith("_per_second"):
        return faster
    return 1 / faster if figure.endswith(("_ms", "seconds")) else 1.0


def compare(before: Path, after: Path) -> int:
    """Prints the comparison of two result files, or of two folders of them. Returns how many figures changed.

    Raises:
        ValueError: nothing can be compared; says what was looked for.
    """
    if before.is_dir() != after.is_dir():
        raise ValueError(f"give two files or two folders, not {before} and {after}")
    if before.is_dir():
        pairs = [(path, after / path.name) for path in sorted(before.glob("*.json")) if (after / path.name).is_file()]
    else:
        pairs = [(before, after)]
    changed = compared = 0
    for old_path, new_path in pairs:
        old, new = read(old_path), read(new_path)
        print(f"{new['name']}: {old['commit'][:10]} of {old['date']} -> {new['commit'][:10]} of {new['date']}")
        if old["machine"] != new["machine"]:
            print(f"  different machines: {old['machine']} and {new['machine']}")
        for change in changes(old["rows"], new["rows"]):
            compared += 1
            changed += change.beyond_noise
            print(f"  {change}")
    if not compared:
        raise ValueError(f"{before} and {after} have no figure with noise in common")
    print(f"{compared} figures, {changed} changed beyond the noise of the two runs")
    return changed
