"""Loads measured in rounds: each round goes through all of them, so that the spread over the rounds, a row's noise,
holds the drift of the machine. How fast the machine was meanwhile is kept with them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.machine_speed import machine_speed
from benchmarks.results import NOT_MEASURED
from benchmarks.serving.load import Window, merged

NOISY = ("products_per_second", "p50_ms", "p90_ms")
Row = dict[str, Any]


class Measured(Protocol):
    """What takes its turn in every round."""

    def measure(self) -> None:
        """One round; never raises."""

    def rows(self) -> list[Row]:
        """What all rounds found."""


@dataclass
class Load:
    """One thing to measure again in every round: what it is, how, and what came out."""

    identity: Row
    run: Callable[[], Window | Mapping[str, float | str]]
    found: list[Window | Mapping[str, float | str]] = field(default_factory=list)
    error: str = ""

    def measure(self) -> None:
        """One round; after a failure the load is left alone."""
        if self.error:
            return
        try:
            self.found.append(self.run())
        except Exception as error:  # whatever the server's protocol raises; the other rows go on
            self.error = str(error) or type(error).__name__

    def rows(self) -> list[Row]:
        """Its one row."""
        return [self.row()]

    def row(self) -> Row:
        """The medians over the rounds, with the spread that they had; rare events are looked for in all together."""
        if self.error:
            return self.identity | {"error": self.error}
        rounds = [part.figures() if isinstance(part, Window) else part for part in self.found]
        windows = [part for part in self.found if isinstance(part, Window)]
        rare = merged(windows).figures() if windows else {}
        row: Row = dict(self.identity)
        for name in rounds[0]:
            values = [found[name] for found in rounds]
            if name in ("p99_ms", "p99_9_ms") and rare:
                row[name] = rare[name]
            else:
                numbers = [value for value in values if isinstance(value, float)]
                row[name] = statistics.median(numbers) if len(numbers) == len(values) else NOT_MEASURED
        row["noise"] = {name: spread([found[name] for found in rounds]) for name in NOISY if row[name] != NOT_MEASURED}
        if windows:
            row["requests"] = sum(len(window.latencies) for window in windows)
        return row


def spread(values: Sequence[Any]) -> float:
    """Largest less smallest, over the median."""
    return float((max(values) - min(values)) / statistics.median(values))


def in_rounds(measured: Sequence[Measured], rounds: int) -> Iterator[Row]:
    """Measures everything once a round, and yields the rows at the end, with how fast the machine was meanwhile."""
    speeds = []
    for _ in range(rounds):
        for one in measured:
            speeds.append(machine_speed())
            one.measure()
    for one in measured:
        for row in one.rows():
            yield row if "error" in row else row | {"machine_speed": statistics.median(speeds)}
