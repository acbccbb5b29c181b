"""The load generator: what a latency is counted from, what is counted, and what becomes of errors."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.results import NOT_MEASURED
from benchmarks.serving.load import Window, closed_loop, merged, open_loop

SERVICE_SECONDS = 0.02


class OneAtATime:
    """A server in this process that needs `SERVICE_SECONDS` a request and serves one at a time."""

    name = "one at a time"
    pid = os.getpid()

    def __init__(self, fails_at: int | None = None) -> None:
        self.busy = threading.Lock()
        self.served: list[Any] = []
        self.fails_at = fails_at
        self.under_way = self.most_under_way = 0
        self.counting = threading.Lock()

    def connect(self) -> OneAtATime:
        return self

    def close(self) -> None: ...

    def call(self, request: Any) -> None:
        with self.counting:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        with self.busy:
            if len(self.served) == self.fails_at:
                raise ConnectionError("the server is gone")
            time.sleep(SERVICE_SECONDS)
            self.served.append(request)
        with self.counting:
            self.under_way -= 1


def test_an_open_loop_charges_the_queue_to_those_who_waited_in_it():
    # Twice as many arrivals as can be served: the last one is due at about n/100 s and served after n/50 s.
    target = OneAtATime()
    window = open_loop(target, ["request"], rate=2 / SERVICE_SECONDS, seconds=0.6)
    served = len(window.latencies)
    assert served == len(target.served) == 60
    due = np.cumsum(np.random.default_rng(0).exponential(SERVICE_SECONDS / 2, size=served))
    # By construction: a sleep is never shorter than asked for.
    assert window.latencies.max() >= served * SERVICE_SECONDS - due[-1]


def test_a_closed_loop_has_as_many_requests_under_way_as_it_is_told():
    target = OneAtATime()
    window = closed_loop(target, [0, 1, 2, 3, 4, 5, 6, 7], rows=3, concurrency=4, seconds=0.3)
    assert window.rows == 3 * len(window.latencies) == 3 * len(target.served)
    assert target.most_under_way == 4


def test_requests_are_taken_in_turn():
    target = OneAtATime()
    closed_loop(target, ["a", "b", "c"], rows=1, concurrency=1, seconds=0.2)
    assert target.served == [("a", "b", "c")[place % 3] for place in range(len(target.served))]
    assert target.served


def test_a_server_that_fails_has_no_latency():
    with pytest.raises(ConnectionError, match="the server is gone"):
        closed_loop(OneAtATime(fails_at=3), ["request"], rows=1, concurrency=2, seconds=5.0)


def window(latencies: list[float]) -> Window:
    return Window(np.array(latencies), len(latencies), 2.0, 1.0, 0.5, 1_000_000)


def test_a_percentile_without_enough_requests_is_not_measured():
    figures = window([0.001 * value for value in range(100)]).figures()
    assert figures["p50_ms"] == pytest.approx(49.5)
    assert figures["p90_ms"] == pytest.approx(89.1)
    assert figures["p99_ms"] == figures["p99_9_ms"] == NOT_MEASURED


def test_windows_together_count_all_their_requests():
    both = merged([window([0.001] * 150), window([0.003] * 150)])
    assert both.figures()["products_per_second"] == 75.0
    assert both.figures()["p99_ms"] == pytest.approx(3.0)
    assert both.figures()["server_cores"] == 0.5
