"""Load on a server: closed loop (a fixed number of callers) and open loop (Poisson arrivals), and what it cost.

Requests are built before the clock starts and answers are read after it stops. In the open loop a latency counts from
the moment at which the request was due, not from when a caller was free to send it: a server that stalls is charged for
everybody who waited (coordinated omission; Tene, "How NOT to Measure Latency", 2015). Processor time and memory are of
the server's whole process tree; memory is the proportional set size, which counts shared pages once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil

from benchmarks.results import NOT_MEASURED
from benchmarks.serving.pipeline import Answers, Embeddings

OPEN_LOOP_CALLERS = 128
FEWEST_FOR = {50: 10, 90: 50, 99: 300, 99.9: 3000}
"""Requests without which a percentile would be a matter of luck."""


class Connection(Protocol):
    """One caller's connection to a server. Connections are not shared between threads."""

    def call(self, request: Any) -> Any:
        """Send a prepared request and return the raw answer; raises when the server refuses or is gone."""

    def close(self) -> None: ...


class Target(Protocol):
    """A server under load, and how to talk to it."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int:
        """Of the server's first process."""

    def connect(self) -> Connection: ...

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> Any:
        """A request of one or more rows."""

    def read(self, answer: Any) -> Answers | Embeddings: ...


@dataclass(frozen=True)
class Window:
    """What one stretch of load measured. Latencies in seconds, one a request; `seconds` of wall time.

    `server_memory` in bytes; None where server and load generator are one process.
    """

    latencies: np.ndarray
    rows: int
    seconds: float
    server_cpu: float
    client_cpu: float
    server_memory: int | None

    def figures(self) -> dict[str, float | str]:
        """Throughput, percentiles in milliseconds, cores in use, bytes of memory."""
        found: dict[str, float | str] = {"products_per_second": self.rows / self.seconds}
        for percent, fewest in FEWEST_FOR.items():
            name = f"p{percent:g}_ms".replace(".", "_")
            enough = len(self.latencies) >= fewest
            found[name] = 1e3 * float(np.percentile(self.latencies, percent)) if enough else NOT_MEASURED
        return found | {
            "server_cores": self.server_cpu / self.seconds,
            "client_cores": self.client_cpu / self.seconds,
            "server_memory_mb": NOT_MEASURED if self.server_memory is None else self.server_memory / 1e6,
        }


def merged(windows: Sequence[Window]) -> Window:
    """Several stretches of the same load as one."""
    memory = [window.server_memory for window in windows if window.server_memory is not None]
    return Window(
        np.concatenate([window.latencies for window in windows]),
        sum(window.rows for window in windows),
        sum(window.seconds for window in windows),
        sum(window.server_cpu for window in windows),
        sum(window.client_cpu for window in windows),
        max(memory, default=None),
    )


class ProcessTree:
    """Processor time and memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def processes(self) -> list[psutil.Process]:
        """Those that live now; empty when the first one has ended."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Proportional set size."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total


def closed_loop(target: Target, requests: Sequence[Any], rows: int, concurrency: int, seconds: float) -> Window:
    """`concurrency` callers, each sending its next request when it has the answer to the one before.

    Args:
        target: the server.
        requests: prepared requests, taken in turn.
        rows: of each request.
        concurrency: callers.
        seconds: how long new requests are sent.

    Raises:
        Exception: the first one that a caller met; a failing server has no latency.
    """
    until = [0.0]

    def caller(number: int, connection: Connection, latencies: list[float]) -> None:
        at = number
        while True:
            start = time.perf_counter()
            if start >= until[0]:
                return
            connection.call(requests[at % len(requests)])
            latencies.append(time.perf_counter() - start)
            at += concurrency

    def begin() -> None:
        until[0] = time.perf_counter() + seconds

    return _measure(target, caller, concurrency, rows, begin)


def open_loop(target: Target, requests: Sequence[Any], rate: float, seconds: float, seed: int = 0) -> Window:
    """Requests of one row at Poisson arrivals, whether or not earlier ones were answered.

    Args:
        target: the server.
        requests: prepared requests, taken in turn.
        rate: arrivals a second.
        seconds: of arrivals; what is under way then is waited for.
        seed: of the arrival times.

    Raises:
        Exception: the first one that a caller met.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(1, int(rate * seconds)))
    due = np.cumsum(gaps)
    order = iter(range(len(due)))
    lock = threading.Lock()
    begun = [0.0]

    def caller(number: int, connection: Connection, latencies: list[float]) -> None:
        while True:
            with lock:
                at = next(order, None)
            if at is None:
                return
            intended = begun[0] + due[at]
            time.sleep(max(0.0, intended - time.perf_counter()))
            connection.call(requests[at % len(requests)])
            latencies.append(time.perf_counter() - intended)

    def begin() -> None:
        begun[0] = time.perf_counter()

    return _measure(target, caller, OPEN_LOOP_CALLERS, 1, begin)


def _measure(
    target: Target,
    caller: Callable[[int, Connection, list[float]], None],
    callers: int,
    rows: int,
    begin: Callable[[], None],
) -> Window:
    """Runs callers on threads, all from the same moment, and counts what was used until the last has ended."""
    connections = [target.connect() for _ in range(callers)]
    latencies: list[list[float]] = [[] for _ in range(callers)]
    failures: list[Exception] = []
    start_line = threading.Barrier(callers + 1)

    def run(number: int) -> None:
        start_line.wait()
        try:
            caller(number, connections[number], latencies[number])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    tree = ProcessTree(target.pid)
    server_before, own_before = tree.cpu_seconds(), sum(os.times()[:2])
    begin()
    start = time.perf_counter()
    start_line.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    server_cpu, client_cpu = tree.cpu_seconds() - server_before, sum(os.times()[:2]) - own_before
    for connection in connections:
        connection.close()
    if failures:
        raise failures[0]
    taken = np.array([latency for part in latencies for latency in part])
    memory = None if target.pid == os.getpid() else tree.memory_bytes()
    return Window(taken, rows * len(taken), seconds, server_cpu, client_cpu, memory)
