"""Suite bulk: a whole feed through `shelfwise bulk` beside what could be reached with the same files and no job around.

Through a server it is compared with perf_analyzer on that server, in process with a bare loop over decoder and network
with its best batch size, on Ray with the same job without. Rates of a job are those of its parts after the first
quarter: starting is not counted, reading, hashing, writing and syncing are. A cheap model shows what the job itself
costs: its memory from ten thousand to a million rows, its rate, and that a hundred kills change nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.bulk.report import goal, write_report
from benchmarks.isolated import in_own_process
from benchmarks.machine_speed import machine_speed
from benchmarks.serving import perf_analyzer
from benchmarks.serving.bulk import RETURNED
from benchmarks.serving.pipeline import Pipeline
from benchmarks.serving.subjects import Subject, subject
from benchmarks.serving.targets import TIMEOUT
from bulk.in_process import InProcessConnection
from bulk.job import Job, Progress, plan, run_with_client
from bulk.parts import Earlier
from bulk.systems import SYSTEMS
from catalogue.feed import open_feed, write_feed
from catalogue.product import Product
from catalogue.sample import sample_products
from client import AsyncShelfwiseClient, Item, ShelfwiseClient, ShelfwiseError
from repository.release import current
from serving.server import TritonServer
from tests.bulk.cheap import feed_of, products, publish_cheap

Row = dict[str, Any]
PACKAGES = ("onnxruntime", "pyarrow", "ray", "tritonclient", "grpcio", "numpy", "simplejpeg", "tokenizers")
BATCH, IN_FLIGHT = 16, 8
BARE_BATCHES = (4, 8, 16, 32, 64)
PART_ROWS = 1024
SERVER, MANY, ASYNC, PERF, BARE, HERE, RAY = (
    "bulk through a server",
    "categorize_many",
    "categorize_many, asyncio",
    "perf_analyzer",
    "bare loop in process",
    "bulk in process",
    "bulk on Ray, two workers",
)


def main(quick: bool, output: Path) -> None:
    """Measure everything, print as it comes, write bulk.json and the page about a hundred million products."""
    rows: list[Row] = []
    for row in measure(quick):
        rows.append(row)
        print({name: value for name, value in row.items() if name != "noise"}, flush=True)
        path = results.write("bulk", rows, PACKAGES, output)
    print("Wrote", path, write_report(path))


def measure(quick: bool) -> Iterator[Row]:
    """All rows of the suite, the goals last."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bulk-") as folder:
        for row in itertools.chain(
            rates(subject("small"), Path(folder), quick),
            job_alone(Path(folder), (1_000, 20_000) if quick else (10_000, 1_000_000)),
            kills(Path(folder), 5 if quick else 100),
        ):
            found.append(row)
            yield row
    yield from goals(found)


def rates(chosen: Subject, folder: Path, quick: bool) -> Iterator[Row]:
    """Products a second of every way, in rounds, so that their spread holds the drift of the machine."""
    count = 4_096 if quick else 16_384
    feed = folder / "feed.parquet"
    drawn = (product for product in sample_products(2 * count, seed=1) if product.images and product.title.strip())
    write_feed(feed, itertools.islice(drawn, count))
    seconds = 3.0 if quick else 10.0
    with TritonServer(chosen.repository, grpc_port=0, metrics_port=0, log_file=folder / "triton.log") as server:
        ways = {
            PERF: lambda: perf_analyzer.closed_loop(server.url, chosen.products, IN_FLIGHT, BATCH, seconds)[
                "products_per_second"
            ],
            MANY: lambda: many(server.url, chosen.products, seconds),
            ASYNC: lambda: asyncio.run(many_async(server.url, chosen.products, seconds)),
            SERVER: lambda: job_rate(feed, folder / "server.parquet", server.url, IN_FLIGHT),
        }
        yield from in_turns(ways, 2 if quick else 3, chosen.name)
    pipeline = Pipeline(chosen.repository)
    ways = {f"{BARE}, {batch} rows": bare(pipeline, chosen.products, batch, seconds) for batch in BARE_BATCHES}
    here = InProcessConnection(chosen.repository, "categorize")
    ways[HERE] = lambda: job_rate(feed, folder / "here.parquet", here, len(os.sched_getaffinity(0)))
    ways[RAY] = lambda: ray_rate(feed, folder / "ray.parquet", chosen.repository)
    yield from in_turns(ways, 2 if quick else 3, chosen.name)
    begin = time.perf_counter()
    for _ in plan(open_feed(feed, question=True), SYSTEMS["categorize"], "model", PART_ROWS, Earlier(folder)):
        pass
    rate = count / (time.perf_counter() - begin)
    yield {"measured": "reading and hashing", "subject": chosen.name, "size": count, "rows_per_second": rate}
    yield {
        "measured": "sizes",
        "subject": chosen.name,
        "feed_bytes_a_row": feed.stat().st_size / count,
        "request_bytes_a_row": statistics.mean(len(p.images[0]) + len(p.title.encode()) for p in chosen.products),
        "result_bytes_a_row": (folder / "here.parquet").stat().st_size / count,
        "part_bytes_a_row": sum(path.stat().st_size for path in (folder / "here.parquet.parts").glob("*.parquet"))
        / count,
        "rays_bytes_are_the_same": (folder / "ray.parquet").read_bytes() == (folder / "here.parquet").read_bytes(),
    }


def in_turns(ways: dict[str, Any], rounds: int, name: str) -> Iterator[Row]:
    """A row a way: the median over the rounds; a way that fails says how."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    errors: dict[str, str] = {}
    speeds: list[float] = []
    for _ in range(rounds):
        for way, run in ways.items():
            speeds.append(machine_speed())
            if way not in errors:
                try:
                    found[way].append(run())
                except Exception as error:  # perf_analyzer cannot be had, Ray is not installed
                    errors[way] = f"{type(error).__name__}: {error}"
    for way, values in found.items():
        row: Row = {"measured": "rate", "subject": name, "way": way, "machine_speed": statistics.median(speeds)}
        if way in errors:
            yield row | {"error": errors[way]}
            continue
        middle = statistics.median(values)
        noise = {"products_per_second": (max(values) - min(values)) / middle}
        yield row | {"products_per_second": middle, "noise": noise}


def bare(pipeline: Pipeline, asked: Sequence[Product], batch: int, seconds: float) -> Any:
    """A function that runs the pipeline over batches of products and returns products a second."""
    cycle = itertools.cycle(asked)
    batches = [list(itertools.islice(cycle, batch)) for _ in range(8)]
    requests = itertools.cycle([([p.images[0] for p in rows], [p.title for p in rows]) for rows in batches])

    def run() -> float:
        pipeline(*next(requests))
        done, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds:
            pipeline(*next(requests))
            done += batch
        return done / elapsed

    return run


class Clock:
    """The rate of a job's parts after the first quarter."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def __call__(self, done: Progress) -> None:
        if not done.under_way:
            self.seen.append((time.perf_counter(), done.rows))

    def rate(self) -> float:
        (begin, first), (end, last) = self.seen[len(self.seen) // 4], self.seen[-1]
        return (last - first) / (end - begin)


def job_rate(feed: Path, out: Path, server: Any, in_flight: int) -> float:
    """Products a second of a job that begins anew."""
    clock = Clock()
    job = Job(open_feed(feed, question=True), "categorize", out, k=5, part_rows=PART_ROWS, anew=True)
    with ShelfwiseClient(server, timeout=TIMEOUT) as client:
        run_with_client(job, client, clock, batch_size=BATCH, in_flight=in_flight)
    return clock.rate()


def ray_rate(feed: Path, out: Path, release: Path) -> float:
    """The same on Ray with two workers, in a process of its own: what Ray starts ends with it."""
    return in_own_process(_ray_rate, feed, out, release)[0]


def _ray_rate(feed: Path, out: Path, release: Path) -> float:
    from bulk.on_ray import run_on_ray

    clock = Clock()
    job = Job(open_feed(feed, question=True), "categorize", out, k=5, part_rows=PART_ROWS, anew=True)
    run_on_ray(job, release, clock, address=None, workers=2, batch_size=BATCH)
    return clock.rate()


def many(url: str, asked: Sequence[Product], seconds: float) -> float:
    """Answers a second of a blocking stream, after a third of the time."""
    items = itertools.cycle([Item(product.images[0], product.title) for product in asked])
    counted = _Counted(seconds)
    with ShelfwiseClient(url, timeout=TIMEOUT) as client:
        answers = client.categorize_many(items, k=RETURNED, batch_size=BATCH, in_flight=IN_FLIGHT)
        for answer in answers:
            if not counted.goes_on(answer):
                break
        answers.close()
    return counted.rate


async def many_async(url: str, asked: Sequence[Product], seconds: float) -> float:
    """The same under asyncio."""
    items = itertools.cycle([Item(product.images[0], product.title) for product in asked])
    counted = _Counted(seconds)
    async with AsyncShelfwiseClient(url, timeout=TIMEOUT) as client:
        answers = client.categorize_many(items, k=RETURNED, batch_size=BATCH, in_flight=IN_FLIGHT)
        async for answer in answers:
            if not counted.goes_on(answer):
                break
        await answers.aclose()
    return counted.rate


class _Counted:
    def __init__(self, seconds: float) -> None:
        self._begin, self._seconds = time.perf_counter(), seconds
        self._counting = 0.0
        self._answers = 0
        self.rate = 0.0

    def goes_on(self, answer: Any) -> bool:
        """Counts an answer, once a third of the time has passed; False at the end, when there is a rate."""
        if isinstance(answer, ShelfwiseError):
            raise answer
        now = time.perf_counter()
        if not self._counting:
            self._counting = now if now - self._begin >= self._seconds / 3 else 0.0
            return True
        self._answers += 1
        self.rate = self._answers / (now - self._counting)
        return now - self._counting < self._seconds


def job_alone(folder: Path, sizes: Sequence[int]) -> Iterator[Row]:
    """What a job costs besides the model: memory and rate at every number of rows."""
    publish_cheap(folder / "cheap", "a")
    for size in sizes:
        feed = folder / f"{size}.parquet"
        feed_of(feed, (product for first in range(0, size, 1000) for product in products(1000, first=first)))
        seconds, memory = in_own_process(_cheap_job, feed, folder / f"result-{size}.parquet", folder / "cheap")
        row: Row = {"measured": "job alone", "size": size, "memory_mb": memory / 1e6}
        yield row | {"rows_per_second": size / seconds}


def _cheap_job(feed: Path, out: Path, repository: Path) -> float:
    begin = time.perf_counter()
    job = Job(open_feed(feed, question=True), "categorize", out)
    with ShelfwiseClient(InProcessConnection(current(repository), "categorize")) as client:
        run_with_client(job, client, batch_size=64, in_flight=2)
    return time.perf_counter() - begin


def kills(folder: Path, count: int) -> Iterator[Row]:
    """Jobs killed at random moments and resumed, each compared with an undisturbed one."""
    shutil.rmtree(killed := folder / "killed", ignore_errors=True)
    publish_cheap(killed / "repository", "a")
    feed_of(killed / "feed.parquet", products(400, refused=range(0, 400, 37)))
    program = [sys.executable, "-m", "tests.bulk.killed_jobs", str(killed), str(count)]
    result = subprocess.run(program, cwd=results.ROOT, capture_output=True, text=True, check=False)
    row: Row = {"measured": "kills", "kills": count, "same_bytes": result.returncode == 0}
    yield row | ({"before_the_end": int(result.stdout)} if result.returncode == 0 else {"error": result.stderr[-500:]})


def goals(rows: Sequence[Row]) -> Iterator[Row]:
    """What was to be reached, as ratios within the run."""
    rate = {row["way"]: row["products_per_second"] for row in rows if "products_per_second" in row}
    best = max((value for way, value in rate.items() if way.startswith(BARE)), default=None)
    memory = {row["size"]: row["memory_mb"] for row in rows if row["measured"] == "job alone"}
    yield goal("categorize_many over perf_analyzer", rate.get(MANY), rate.get(PERF), 0.9)
    yield goal("categorize_many under asyncio over perf_analyzer", rate.get(ASYNC), rate.get(PERF), 0.9)
    yield goal("bulk through a server over perf_analyzer", rate.get(SERVER), rate.get(PERF), 0.9)
    yield goal("bulk in process over the bare loop's best batch size", rate.get(HERE), best, 0.95)
    yield goal("bulk on Ray over bulk in process", rate.get(RAY), rate.get(HERE), 0.9)
    grown = memory[max(memory)] - memory[min(memory)]
    text = f"MB that memory grows from {min(memory):,} to {max(memory):,} rows"
    yield {"measured": "goal", "goal": text, "limit": "≤ 50", "ratio": grown, "reached": grown <= 50}
