"""Ten times as many requests as a server can answer: how much of its capacity it still delivers, and at what cost.

    python -m benchmarks.serving.overload FEED --repository DIR

Capacity is what a closed loop of eight callers gets. The overload is an open loop of Poisson arrivals that nothing
slows down, of requests of 32 rows, so that on one machine the load generator is a small part of the work. Goodput
counts the answers within the caller's deadline; the rest must be refused at once. Meanwhile `serving.readiness` is
asked every second, as an orchestrator would, and memory is sampled.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks import results
from benchmarks.markdown import markdown
from benchmarks.serving.load import ProcessTree, closed_loop
from benchmarks.serving.targets import GrpcConnection, GrpcTarget
from catalogue.feed import open_feed
from serving import readiness
from serving.server import TritonServer

ROWS = 32
CALLERS = 8
DEADLINE_SECONDS = 10.0


@dataclass
class Overload:
    """What came of the requests of an open loop; times in seconds from sending to the answer or the refusal.

    `counted` are the answers that came while requests were offered and the queues had filled, from `begin` to `end`.
    """

    begin: float
    end: float
    counted: int = 0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: int = 0

    def record(self, call: grpc.Future, sent: float) -> None:
        """Called by gRPC when a request has ended."""
        now = time.perf_counter()
        status = call.code()
        if status == grpc.StatusCode.OK:
            self.answered.append(now - sent)
            self.counted += self.begin <= now <= self.end
        elif status == grpc.StatusCode.UNAVAILABLE:
            self.refused.append(now - sent)
        else:
            self.late += 1


def offer(url: str, requests: list[service_pb2.ModelInferRequest], rate: float, seconds: float) -> Overload:
    """Send `rate` requests a second for so long, whatever becomes of them, and wait for the end of the last."""
    connection = GrpcConnection(url)
    generator = np.random.default_rng(0)
    due = begin = time.perf_counter()
    overload = Overload(begin + seconds / 4, begin + seconds)
    calls = []
    for request in requests:
        request.parameters["timeout"].int64_param = round(1e6 * DEADLINE_SECONDS)  # what is late is not computed
    for request in itertools.cycle(requests):
        due += generator.exponential(1 / rate)
        if due - begin > seconds:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        call = connection.stub.ModelInfer.future(request, timeout=DEADLINE_SECONDS)
        call.add_done_callback(lambda call, sent=sent: overload.record(call, sent))
        calls.append(call)
    for call in calls:
        call.exception()
    connection.close()
    return overload


def measure(server: TritonServer, requests: list[service_pb2.ModelInferRequest], times: float, seconds: float) -> dict:
    """Capacity, then `times` as much: one row of the result."""
    assert server.process is not None
    tree = ProcessTree(server.process.pid)
    target = GrpcTarget("triton", server.url, server.process.pid)
    closed_loop(target, requests, ROWS, CALLERS, seconds / 3)
    capacity = float(closed_loop(target, requests, ROWS, CALLERS, seconds).figures()["products_per_second"])
    idle, memory, probes = tree.memory_bytes(), [0], []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            memory.append(tree.memory_bytes())
            try:
                server.wait_until_ready(10)
                probes.append(True)
            except readiness.NotReady:
                probes.append(False)

    watcher = threading.Thread(target=watch)
    watcher.start()
    overload = offer(server.url, requests, times * capacity / ROWS, seconds)
    goodput = ROWS * overload.counted / (overload.end - overload.begin)
    ended.set()
    watcher.join()
    return {
        "offered": times,
        "capacity_products_per_second": capacity,
        "goodput_products_per_second": goodput,
        "goodput_share": goodput / capacity,
        "answered": len(overload.answered),
        "refused": len(overload.refused),
        "late": overload.late,
        "answer_p50_ms": 1e3 * float(np.median(overload.answered)),
        "refusal_p50_ms": 1e3 * float(np.median(overload.refused)) if overload.refused else 0.0,
        "memory_before_mb": idle / 1e6,
        "memory_most_mb": max(memory) / 1e6,
        "probes": len(probes),
        "probes_green": sum(probes),
    }


def main() -> None:
    """Measure and print `--runs` rows, and write them to overload.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("feed", type=Path)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    products = list(itertools.islice((product for product in open_feed(arguments.feed) if product.images), 8 * ROWS))
    rows = []
    for run in range(arguments.runs):
        log = arguments.out / "overload-triton.log"
        with TritonServer(arguments.repository, grpc_port=0, metrics_port=0, log_file=log) as server:
            target = GrpcTarget("triton", server.url, 0)
            batches = [products[start : start + ROWS] for start in range(0, len(products) - ROWS + 1, ROWS)]
            requests = [
                target.prepare([product.images[0] for product in batch], [product.title for product in batch])
                for batch in batches
            ]
            rows.append({"run": run} | measure(server, requests, 10.0, arguments.seconds))
        log.unlink()
        print(markdown(list(rows[-1]), [list(rows[-1].values())]), flush=True)
    results.write("overload", rows, ("tritonclient", "grpcio", "numpy"), arguments.out)


if __name__ == "__main__":
    main()
