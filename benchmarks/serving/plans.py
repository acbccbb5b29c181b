"""How much suite serving measures of each size of encoder, and what is to be reached (performance.md's goals)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How much is measured of one subject; windows in seconds."""

    products: int
    rounds: int
    window: float
    concurrencies: tuple[int, ...]
    batches: tuple[int, ...]
    client_concurrencies: tuple[int, ...]
    rival_concurrencies: tuple[int, ...]
    open_loop_window: float
    p50_goal: float
    throughput_goal: float
    bulk: tuple[int, int]  # rows a request, requests in flight
    sweep: bool = False


FULL = {
    "small": Plan(64, 3, 1.5, (1, 2, 4, 8, 16, 32), (1, 8, 32), (1, 8, 32), (1, 8), 4.0, 1.25, 0.9, (8, 4), sweep=True),
    "ViT-B/32": Plan(16, 2, 4.0, (1, 8), (1, 4), (1, 8), (1, 8), 5.0, 1.05, 0.97, (4, 2)),
}
QUICK = {"small": Plan(16, 2, 1.0, (1, 8), (1, 8), (8,), (8,), 2.0, 1.25, 0.9, (8, 4))}
