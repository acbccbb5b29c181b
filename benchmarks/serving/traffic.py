"""The requests that a subject's servers get, in closed and open loops, as loads to be measured in rounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.serving import perf_analyzer
from benchmarks.serving.bulk import bulk
from benchmarks.serving.in_process import InProcessTarget
from benchmarks.serving.load import Target, Window, closed_loop, open_loop
from benchmarks.serving.plans import Plan
from benchmarks.serving.rounds import Load, Row
from benchmarks.serving.subjects import Subject
from catalogue.product import Product

TRITON = "Triton"
IN_PROCESS = InProcessTarget.name
# What sends the requests.
PREPARED, NO_CLIENT, TRITONCLIENT, PERF_ANALYZER = "prepared requests", "none", "tritonclient", "perf_analyzer"
OWN_CLIENT, BULK = "ShelfwiseClient", "categorize_many"


@dataclass(frozen=True)
class Traffic:
    """A subject's products as requests, and how long each load lasts."""

    subject: Subject
    plan: Plan

    @property
    def products(self) -> list[Product]:
        """Those that are asked about."""
        return self.subject.products[: self.plan.products]

    def requests(self, target: Target, batch: int = 1) -> list[Any]:
        """Requests of `batch` rows, one beginning at every `batch`-th product, in the target's form."""
        images = [product.images[0] for product in self.products]
        titles = [product.title for product in self.products]
        starts = range(0, len(images), batch)
        images, titles = images * batch, titles * batch  # so that the last request is of `batch` rows, too
        return [target.prepare(images[start : start + batch], titles[start : start + batch]) for start in starts]

    def closed(self, target: Target, concurrency: int, batch: int = 1, client: str = PREPARED) -> Load:
        """A closed loop on a target; every round begins with a third of a window that is not counted."""
        requests = self.requests(target, batch)

        def run() -> Window:
            closed_loop(target, requests, batch, concurrency, self.plan.window / 3)
            return closed_loop(target, requests, batch, concurrency, self.plan.window)

        return Load(self._closed_identity(target.name, client, concurrency, batch), run)

    def by_perf_analyzer(self, url: str, concurrency: int, batch: int, seconds: float) -> Load:
        """A closed loop that perf_analyzer drives."""
        run = partial(perf_analyzer.closed_loop, url, self.products, concurrency, batch, seconds)
        return Load(self._closed_identity(TRITON, PERF_ANALYZER, concurrency, batch), run)

    def stream(self, url: str, batch: int, in_flight: int, seconds: float) -> Load:
        """Our client's `categorize_many`."""
        run = partial(bulk, url, self.products, batch, in_flight, seconds)
        return Load(self._closed_identity(TRITON, BULK, in_flight, batch), run)

    def open(self, target: Target, share: float, capacity: float) -> Load:
        """Poisson arrivals at a share of `capacity`, in products a second: others every round, the same every run."""
        requests = self.requests(target)
        seeds = iter(range(self.plan.rounds))
        identity = {
            "measured": "load",
            "subject": self.subject.name,
            "server": target.name,
            "client": PREPARED,
            "loop": "open",
            "share_of_capacity": share,
            "batch": 1,
        }
        return Load(
            identity, lambda: open_loop(target, requests, share * capacity, self.plan.open_loop_window, next(seeds))
        )

    def _closed_identity(self, server: str, client: str, concurrency: int, batch: int) -> Row:
        return {
            "measured": "load",
            "subject": self.subject.name,
            "server": server,
            "client": client,
            "loop": "closed",
            "concurrency": concurrency,
            "batch": batch,
        }
