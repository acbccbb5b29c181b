"""Suite serving: `categorize` on a real Triton, beside the same files in one process, perf_analyzer and the rivals.

Every server is asked about all products first, and its answers are compared with ONNX Runtime's; one that answers
differently is listed as wrong and not timed. Loads are measured in several rounds, each going through all of them, so
that the spread over the rounds holds the drift of the machine; that spread is a row's noise. How fast the machine was
around a load is kept with it. A server that fails loses its rows, not the report.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.machine_speed import machine_speed
from benchmarks.results import NOT_MEASURED
from benchmarks.serving import decoding, perf_analyzer, sweep, triton_statistics
from benchmarks.serving.bulk import bulk
from benchmarks.serving.clip_checkpoint import embeddings
from benchmarks.serving.correctness import mistake
from benchmarks.serving.in_process import InProcessTarget
from benchmarks.serving.load import Target, Window, closed_loop, merged, open_loop
from benchmarks.serving.pipeline import Answers, Embeddings, Pipeline
from benchmarks.serving.report import write_report
from benchmarks.serving.rival_servers import Rival, RivalError, rivals_environment, rivals_of, running
from benchmarks.serving.subjects import Subject, subject
from benchmarks.serving.targets import GrpcTarget, OwnClientTarget, TritonclientTarget
from serving.server import TritonServer

PACKAGES = ("onnxruntime", "tritonclient", "grpcio", "numpy", "torch", "simplejpeg", "tokenizers")
RIVAL_PACKAGES = {
    "rivals": ("fastapi", "uvicorn", "litserve", "nvidia-pytriton", "onnxruntime", "torch", "numpy"),
    "infinity": ("infinity-emb", "fastapi", "uvicorn", "transformers", "torch", "numpy"),
}
TRITON = "Triton"
IN_PROCESS = InProcessTarget.name
OWN_CLIENT, BULK = "ShelfwiseClient", "categorize_many"
PAIRS = 12
OPEN_LOOP_SHARES = (0.5, 0.8, 0.95)
NOISY = ("products_per_second", "p50_ms", "p90_ms")
Row = dict[str, Any]


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
        """The medians over the rounds, with the spread that they had."""
        if self.error:
            return self.identity | {"error": self.error}
        rounds = [part.figures() if isinstance(part, Window) else part for part in self.found]
        windows = [part for part in self.found if isinstance(part, Window)]
        # Rare events are looked for in all rounds together.
        rare = merged(windows).figures() if windows else {}
        row: Row = dict(self.identity)
        for name in rounds[0]:
            values = [found[name] for found in rounds]
            if name in ("p99_ms", "p99_9_ms") and rare:
                row[name] = rare[name]
            else:
                numbers = [value for value in values if isinstance(value, float)]
                row[name] = statistics.median(numbers) if len(numbers) == len(values) else NOT_MEASURED
        if row.get("server") == IN_PROCESS:
            row["server_memory_mb"] = NOT_MEASURED  # it shares its process with the load generator
        row["noise"] = {name: spread([found[name] for found in rounds]) for name in NOISY if row[name] != NOT_MEASURED}
        if windows:
            row["requests"] = sum(len(window.latencies) for window in windows)
        return row


def spread(values: Sequence[Any]) -> float:
    """Largest less smallest, over the median."""
    return float((max(values) - min(values)) / statistics.median(values))


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
    products = subject.products[: plan.products]
    images, titles = [product.images[0] for product in products], [product.title for product in products]
    pipeline = Pipeline(subject.repository)
    expected = joined([pipeline([image], [title]) for image, title in zip(images, titles, strict=True)])
    loads = [closed(InProcessTarget(pipeline), subject, plan, images, titles, 1, batch) for batch in plan.batches]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        log = Path(folder) / "triton.log"
        with TritonServer(subject.repository, http_port=0, grpc_port=0, metrics_port=0, log_file=log) as server:
            assert server.process is not None
            triton = GrpcTarget(TRITON, server.url, server.process.pid)
            raw = TritonclientTarget(TRITON, server.url, server.process.pid)
            own = OwnClientTarget(TRITON, server.url, server.process.pid)
            for target, batch in ((triton, 1), (triton, max(plan.batches)), (raw, 1), (own, 1)):
                found = mistake(target, products, expected, batch)
                if found:
                    yield {"measured": "load", "subject": subject.name, "server": TRITON, "error": f"wrong: {found}"}
                    return
            for batch in plan.batches:
                for concurrency in plan.concurrencies:
                    loads.append(closed(triton, subject, plan, images, titles, concurrency, batch))
            for concurrency in plan.client_concurrencies:
                for name, target in (("tritonclient", raw), (OWN_CLIENT, own)):
                    load = closed(target, subject, plan, images, titles, concurrency, 1)
                    load.identity["client"] = name
                    loads.append(load)
                loads.append(by_perf_analyzer(server.url, subject, plan, concurrency, 1, plan.window))
            batch, in_flight = plan.bulk
            stream = partial(bulk, server.url, products, batch, in_flight, 2 * plan.window)
            loads.append(Load(closed_identity(subject, TRITON, BULK, in_flight, batch), stream))
            loads.append(by_perf_analyzer(server.url, subject, plan, in_flight, batch, 2 * plan.window))
            rivals = []
            for rival in rivals_of(subject.name):
                right = embeddings(subject, products) if rival.speaks == "embeddings" else expected
                rivals.append(RivalLoads(rival, subject, plan, images, titles, right))
            yield from in_rounds([*loads, *rivals], plan)
            yield client_overhead(own, raw, subject, plan, images, titles)
            yield from open_loop_rows(triton, subject, plan, images, titles, [load.row() for load in loads])
            for concurrency in (1, 8):
                yield from breakdown_rows(triton, subject, plan, images, titles, concurrency)


def joined(answers: Sequence[Answers]) -> Answers:
    """Answers of single rows as one."""
    return Answers(**{name: np.concatenate([getattr(part, name) for part in answers]) for name in vars(answers[0])})


def in_rounds(measured: Sequence[Load | RivalLoads], plan: Plan) -> Iterator[Row]:
    """Measures everything once a round, and yields the rows at the end, with how fast the machine was meanwhile."""
    speeds = []
    for _ in range(plan.rounds):
        for one in measured:
            speeds.append(machine_speed())
            one.measure()
    for one in measured:
        for row in one.rows():
            yield row if "error" in row else row | {"machine_speed": statistics.median(speeds)}


@dataclass
class RivalLoads:
    """A rival under its loads. It runs only while it is measured, once a round, so that its rounds lie as far apart as
    Triton's and a slow minute of the machine hits both.
    """

    rival: Rival
    subject: Subject
    plan: Plan
    images: list[bytes]
    titles: list[str]
    expected: Answers | Embeddings
    loads: list[Load] = field(default_factory=list)
    error: str = ""

    def measure(self) -> None:
        """One round; its answers are checked in the first. After a failure the rival is left alone."""
        if self.error:
            return
        try:
            with running(self.rival, self.subject) as target:
                if not self.loads and (
                    found := mistake(target, self.subject.products[: len(self.images)], self.expected)
                ):
                    self.error = f"wrong: {found}"
                    return
                again = [
                    closed(target, self.subject, self.plan, self.images, self.titles, concurrency, 1)
                    for concurrency in self.plan.rival_concurrencies
                ]
                self.loads = self.loads or again
                for load, now in zip(self.loads, again, strict=True):
                    load.run = now.run  # the process is another one
                    load.measure()
        except Exception as error:  # not installed, did not start, died
            self.error = str(error)

    def rows(self) -> list[Row]:
        """A row a load, or one that says why there are none."""
        if self.error:
            return [{"measured": "load", "subject": self.subject.name, "server": self.rival.name, "error": self.error}]
        return [load.row() for load in self.loads]


def closed(
    target: Target, subject: Subject, plan: Plan, images: list[bytes], titles: list[str], concurrency: int, batch: int
) -> Load:
    """A closed loop on a target; every round begins with a third of a window that is not counted."""
    starts = range(0, len(images), batch)
    many_images, many_titles = images * batch, titles * batch  # so that every request is of `batch` rows
    requests = [
        target.prepare(many_images[start : start + batch], many_titles[start : start + batch]) for start in starts
    ]
    client = "none" if target.name == IN_PROCESS else "prepared requests"

    def run() -> Window:
        closed_loop(target, requests, batch, concurrency, plan.window / 3)
        return closed_loop(target, requests, batch, concurrency, plan.window)

    return Load(closed_identity(subject, target.name, client, concurrency, batch), run)


def by_perf_analyzer(url: str, subject: Subject, plan: Plan, concurrency: int, batch: int, seconds: float) -> Load:
    """A closed loop that perf_analyzer drives."""
    products = subject.products[: plan.products]
    run = partial(perf_analyzer.closed_loop, url, products, concurrency, batch, seconds)
    return Load(closed_identity(subject, TRITON, "perf_analyzer", concurrency, batch), run)


def closed_identity(subject: Subject, server: str, client: str, concurrency: int, batch: int) -> Row:
    """What says which closed loop a row is of."""
    return {
        "measured": "load",
        "subject": subject.name,
        "server": server,
        "client": client,
        "loop": "closed",
        "concurrency": concurrency,
        "batch": batch,
    }


def client_overhead(
    own: OwnClientTarget, raw: TritonclientTarget, subject: Subject, plan: Plan, images: list[bytes], titles: list[str]
) -> Row:
    """The median latency of our client over raw tritonclient's; the machine changes by more from second to second.

    Both take turns in short windows; the ratio is the median over the pairs.
    """
    row: Row = {"measured": "client overhead", "subject": subject.name}
    request = own.prepare([images[0]], [titles[0]])  # the same for both
    try:
        pairs = [
            [np.median(closed_loop(target, [request], 1, 1, plan.window / 2).latencies) for target in (own, raw)]
            for _ in range(PAIRS)
        ]
    except Exception as error:  # the server is gone
        return row | {"error": str(error)}
    ratios = [float(ours / theirs) for ours, theirs in pairs]
    low, high = np.percentile(ratios, [20, 80])
    return row | {"ratio": statistics.median(ratios), "noise": {"ratio": float(high - low)}}


def open_loop_rows(
    target: Target, subject: Subject, plan: Plan, images: list[bytes], titles: list[str], measured: Sequence[Row]
) -> Iterator[Row]:
    """Poisson arrivals at shares of the capacity: the best throughput that single-row requests reached."""
    reached = [
        row["products_per_second"]
        for row in measured
        if row["server"] == target.name
        and row["batch"] == 1
        and "error" not in row
        and row["client"] == "prepared requests"
    ]
    if not reached:
        return
    capacity = max(reached)
    requests = [target.prepare([image], [title]) for image, title in zip(images, titles, strict=True)]
    loads = []
    for share in OPEN_LOOP_SHARES:
        identity = {
            "measured": "load",
            "subject": subject.name,
            "server": target.name,
            "client": "prepared requests",
            "loop": "open",
            "share_of_capacity": share,
            "batch": 1,
        }
        rate = share * capacity

        seeds = iter(range(plan.rounds))  # other arrivals in every round, the same ones in every run

        def next_round(rate: float = rate, seeds: Iterator[int] = seeds) -> Window:
            return open_loop(target, requests, rate, plan.open_loop_window, next(seeds))

        loads.append(Load(identity, next_round))
    yield from in_rounds(loads, plan)


def breakdown_rows(
    target: GrpcTarget, subject: Subject, plan: Plan, images: list[bytes], titles: list[str], concurrency: int
) -> Iterator[Row]:
    """Where a request's time goes, from Triton's statistics over two windows."""
    requests = [target.prepare([image], [title]) for image, title in zip(images, titles, strict=True)]
    identity = {"measured": "breakdown", "subject": subject.name, "concurrency": concurrency}
    try:
        before = triton_statistics.read(target.url)
        window = closed_loop(target, requests, 1, concurrency, 2 * plan.window)
        after = triton_statistics.read(target.url)
    except Exception as error:  # the server is gone
        yield identity | {"error": str(error)}
        return
    steps = triton_statistics.steps(subject.repository)
    for row in triton_statistics.breakdown(before, after, steps, 1e3 * float(window.latencies.mean())):
        yield identity | row


def goals(name: str, plan: Plan, rows: Sequence[Row]) -> Iterator[Row]:
    """The serving goals against what was measured; a goal whose rows are missing is not measured."""
    closed_rows = {
        (row["server"], row["client"], row["concurrency"], row["batch"]): row
        for row in rows
        if row.get("loop") == "closed" and "error" not in row
    }

    def of(
        server: str, concurrency: int, measure: str, client: str = "prepared requests", batch: int = 1
    ) -> float | None:
        row = closed_rows.get((server, client, concurrency, batch))
        value = row[measure] if row else None
        return value if isinstance(value, float) else None

    def goal(text: str, value: float | None, base: float | None, limit: float) -> Row:
        at_most = not text.startswith("throughput")
        sign = "≤" if at_most else "≥"
        found: Row = {"measured": "goal", "subject": name, "goal": text, "limit": f"{sign} {limit:g}"}
        found["ratio"] = NOT_MEASURED
        if value is not None and base:
            ratio = value / base
            found |= {"ratio": ratio, "reached": ratio <= limit if at_most else ratio >= limit}
        return found

    limit_p50 = of(IN_PROCESS, 1, "p50_ms", "none")
    limit_rate = of(IN_PROCESS, 1, "products_per_second", "none")
    own_rate, own_p99 = of(TRITON, 8, "products_per_second"), of(TRITON, 8, "p99_ms")
    yield goal("p50 at concurrency 1 over in-process", of(TRITON, 1, "p50_ms"), limit_p50, plan.p50_goal)
    yield goal("throughput at concurrency 8 over in-process", own_rate, limit_rate, plan.throughput_goal)
    for rival in rivals_of(name):
        rate, p99 = of(rival.name, 8, "products_per_second"), of(rival.name, 8, "p99_ms")
        yield goal(f"throughput at concurrency 8 over {rival.name}", own_rate, rate, 1.3)
        yield goal(f"p99 at concurrency 8 over {rival.name}", own_p99, p99, 1.0)
    overhead = next((row.get("ratio") for row in rows if row["measured"] == "client overhead"), None)
    yield goal("p50 at concurrency 1, ShelfwiseClient over tritonclient", overhead, 1.0, 1.03)
    batch, in_flight = plan.bulk
    for client, concurrency, rows_a_request in (
        *((OWN_CLIENT, concurrency, 1) for concurrency in plan.client_concurrencies),
        (BULK, in_flight, batch),
    ):
        rate, other = (
            of(TRITON, concurrency, "products_per_second", name, rows_a_request) for name in (client, "perf_analyzer")
        )
        load = f"concurrency {concurrency}" + (f" and {rows_a_request} rows a request" if rows_a_request > 1 else "")
        yield goal(f"throughput at {load}, {client} over perf_analyzer", rate, other, 0.9)


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
