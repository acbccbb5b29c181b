"""Suite serving: `categorize` on a real Triton, beside the same files in one process, perf_analyzer and the rivals.

Every server is asked about all products first, and its answers are compared with ONNX Runtime's; one that answers
differently is listed as wrong and not timed. A server that fails loses its rows, not the report.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import results
from benchmarks.serving import decoding, sweep, triton_statistics
from benchmarks.serving.clip_checkpoint import embeddings
from benchmarks.serving.correctness import mistake
from benchmarks.serving.goals import goals
from benchmarks.serving.in_process import InProcessTarget
from benchmarks.serving.load import closed_loop
from benchmarks.serving.pipeline import Pipeline, joined
from benchmarks.serving.plans import FULL, QUICK, Plan
from benchmarks.serving.report import write_report
from benchmarks.serving.rival_loads import RivalLoads
from benchmarks.serving.rival_servers import RivalError, rivals_environment, rivals_of
from benchmarks.serving.rounds import Load, Measured, Row, in_rounds
from benchmarks.serving.subjects import Subject, subject
from benchmarks.serving.targets import GrpcTarget, OwnClientTarget, TritonclientTarget
from benchmarks.serving.traffic import NO_CLIENT, OWN_CLIENT, PREPARED, TRITON, TRITONCLIENT, Traffic
from serving.server import TritonServer

PACKAGES = ("onnxruntime", "tritonclient", "grpcio", "numpy", "torch", "simplejpeg", "tokenizers")
RIVAL_PACKAGES = {
    "rivals": ("fastapi", "uvicorn", "litserve", "nvidia-pytriton", "onnxruntime", "torch", "numpy"),
    "infinity": ("infinity-emb", "fastapi", "uvicorn", "transformers", "torch", "numpy"),
}
PAIRS = 12
OPEN_LOOP_SHARES = (0.5, 0.8, 0.95)
BREAKDOWN_CONCURRENCIES = (1, 8)


def main(quick: bool, output: Path) -> None:
    """Measure everything, print as it comes, write serving.json with its tables and plots."""
    rows: list[Row] = []
    for row in measure(quick):
        rows.append(row)
        print(line(row), flush=True)
        path = results.write("serving", rows, PACKAGES, output)
    print("Wrote", path, *write_report(path))


def measure(quick: bool) -> Iterator[Row]:
    """All rows of the suite."""
    yield decoding.measure(quick)
    yield from rival_versions()
    for name, plan in (QUICK if quick else FULL).items():
        found: list[Row] = []
        for row in measure_subject(subject(name), plan):
            found.append(row)
            yield row
        yield from goals(name, plan, found)
        if plan.sweep:
            yield from sweep.measure(subject(name), plan.window, quick)


def rival_versions() -> Iterator[Row]:
    """What the rivals are, as installed."""
    for environment, packages in RIVAL_PACKAGES.items():
        row: Row = {"measured": "rivals", "environment": environment}
        try:
            folder = rivals_environment(environment) / "lib"
        except RivalError as error:
            yield row | {"error": str(error)}
            continue
        installed = dict(
            path.name.removesuffix(".dist-info").rsplit("-", 1)
            for path in folder.glob("python3*/site-packages/*.dist-info")
        )
        yield row | {"versions": {name: installed.get(name.replace("-", "_"), "absent") for name in packages}}


def measure_subject(subject: Subject, plan: Plan) -> Iterator[Row]:
    """The rows of one size of encoder."""
    traffic = Traffic(subject, plan)
    pipeline = Pipeline(subject.repository)
    expected = joined([pipeline([product.images[0]], [product.title]) for product in traffic.products])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        log = Path(folder) / "triton.log"
        with TritonServer(subject.repository, grpc_port=0, metrics_port=0, log_file=log) as server:
            assert server.process is not None
            triton = GrpcTarget(TRITON, server.url, server.process.pid)
            raw = TritonclientTarget(TRITON, server.url, server.process.pid)
            own = OwnClientTarget(TRITON, server.url, server.process.pid)
            for target, batch in ((triton, 1), (triton, max(plan.batches)), (raw, 1), (own, 1)):
                found = mistake(target, traffic.products, expected, batch)
                if found:
                    yield {"measured": "load", "subject": subject.name, "server": TRITON, "error": f"wrong: {found}"}
                    return
            limit = InProcessTarget(pipeline)
            loads = [
                *(traffic.closed(limit, 1, batch, NO_CLIENT) for batch in plan.batches),
                *(traffic.closed(triton, callers, batch) for batch in plan.batches for callers in plan.concurrencies),
                *client_loads(traffic, server.url, raw, own),
            ]
            rivals = [
                RivalLoads(
                    rival,
                    traffic,
                    embeddings(subject, traffic.products) if rival.speaks == "embeddings" else expected,
                )
                for rival in rivals_of(subject.name)
            ]
            measured: list[Measured] = [*loads, *rivals]
            yield from in_rounds(measured, plan.rounds)
            yield client_overhead(traffic, own, raw)
            yield from open_loop_rows(traffic, triton, [load.row() for load in loads])
            for concurrency in BREAKDOWN_CONCURRENCIES:
                yield from breakdown_rows(traffic, triton, concurrency)


def client_loads(traffic: Traffic, url: str, raw: TritonclientTarget, own: OwnClientTarget) -> Iterator[Load]:
    """Ours, tritonclient and perf_analyzer side by side; then streams of many rows."""
    plan = traffic.plan
    for concurrency in plan.client_concurrencies:
        yield traffic.closed(raw, concurrency, client=TRITONCLIENT)
        yield traffic.closed(own, concurrency, client=OWN_CLIENT)
        yield traffic.by_perf_analyzer(url, concurrency, 1, plan.window)
    batch, in_flight = plan.bulk
    yield traffic.stream(url, batch, in_flight, 2 * plan.window)
    yield traffic.by_perf_analyzer(url, in_flight, batch, 2 * plan.window)


def client_overhead(traffic: Traffic, own: OwnClientTarget, raw: TritonclientTarget) -> Row:
    """The median latency of our client over raw tritonclient's; the machine changes by more from second to second.

    Both take turns in short windows; the ratio is the median over the pairs.
    """
    row: Row = {"measured": "client overhead", "subject": traffic.subject.name}
    request = traffic.requests(own)[0]  # the same for both
    seconds = traffic.plan.window / 2
    try:
        pairs = [
            [np.median(closed_loop(target, [request], 1, 1, seconds).latencies) for target in (own, raw)]
            for _ in range(PAIRS)
        ]
    except Exception as error:  # the server is gone
        return row | {"error": str(error)}
    ratios = [float(ours / theirs) for ours, theirs in pairs]
    low, high = np.percentile(ratios, [20, 80])
    return row | {"ratio": statistics.median(ratios), "noise": {"ratio": float(high - low)}}


def open_loop_rows(traffic: Traffic, target: GrpcTarget, measured: Sequence[Row]) -> Iterator[Row]:
    """Poisson arrivals at shares of the capacity: the best throughput that single-row requests reached."""
    reached = [
        row["products_per_second"]
        for row in measured
        if (row["server"], row["client"], row["batch"]) == (target.name, PREPARED, 1) and "error" not in row
    ]
    if reached:
        loads = [traffic.open(target, share, max(reached)) for share in OPEN_LOOP_SHARES]
        yield from in_rounds(loads, traffic.plan.rounds)


def breakdown_rows(traffic: Traffic, target: GrpcTarget, concurrency: int) -> Iterator[Row]:
    """Where a request's time goes, from Triton's statistics over two windows."""
    identity = {"measured": "breakdown", "subject": traffic.subject.name, "concurrency": concurrency}
    requests = traffic.requests(target)
    try:
        before = triton_statistics.read(target.url)
        window = closed_loop(target, requests, 1, concurrency, 2 * traffic.plan.window)
        after = triton_statistics.read(target.url)
    except Exception as error:  # the server is gone
        yield identity | {"error": str(error)}
        return
    steps = triton_statistics.steps(traffic.subject.repository)
    for row in triton_statistics.breakdown(before, after, steps, 1e3 * float(window.latencies.mean())):
        yield identity | row


def line(row: Row) -> str:
    """A row for the terminal."""
    kind = row["measured"]
    head = " ".join(
        str(row[name])
        for name in ("subject", "server", "client", "loop", "share_of_capacity", "concurrency", "batch", "step", "goal")
        if name in row
    )
    if "error" in row:
        return f"{kind}: {head}: {row['error']}"
    numbers = " ".join(
        f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float) and name != "share_of_capacity"
    )
    return f"{kind}: {head}: {numbers}" + ("" if row.get("reached", True) else "  MISSED")
