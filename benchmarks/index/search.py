"""How fast the index answers and how much it finds, on one core, index alone: small and exact, large and partitioned.

Photos and text queries are those of the real feed's retriever where a run of the demonstration has left them, else
drawn: clusters, and queries a constant direction away from them, as texts are from photos. A million are these and
copies with noise. Every recall is against an exact search by NumPy, which is also the rival in time; other codes of
faiss are measured beside the one chosen, at the least effort that finds 98 %.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks import results
from benchmarks.quality.colours import DATA, REAL_FEED
from index.partition import TRAINING_ROWS_A_LIST
from index.publish import IndexedProduct, publish
from index.search import Searcher
from index.snapshot import PARTITION, Encoder, open_snapshot

RUNS = results.ROOT / "runs" / "benchmarks" / "index"
DEMO_RUN = results.ROOT / "runs" / Path(REAL_FEED).stem / "retrieve"
ENCODER = Encoder("benchmark", "benchmark", "benchmark")
NOISE = 0.6
SHARES = {"kept .1 %": 0.001, "kept 2 %": 0.02, "kept 10 %": 0.1, "kept 50 %": 0.5}
K = 10
QUERIES = 200
RIVALS = ("IVF{lists},RaBitQ", "IVF{lists},PQ128x4fs", "HNSW32,SQ8")
Row = dict[str, Any]


@dataclass(frozen=True)
class Vectors:
    """Photos [N, D] and text queries [Q, D], unit length, and where they come from."""

    source: str
    photos: np.ndarray
    queries: np.ndarray


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON to `output`; quick: a tenth of the rows, and no rivals."""
    faiss.omp_set_num_threads(1)
    vectors = real_vectors() or drawn_vectors(4_000 if quick else 41_000)
    large = 100_000 if quick else 1_000_000
    rows: list[Row] = []
    for row in measure(vectors, large, quick):
        rows.append({"vectors": vectors.source, "dimensions": vectors.photos.shape[1], **row})
        print(rows[-1], flush=True)
        results.write("index", rows, ("faiss-cpu", "numpy"), output)


def measure(vectors: Vectors, large: int, quick: bool) -> Iterator[Row]:
    """The rows, one after the other."""
    yield from searched("exact", vectors.photos, vectors.queries)
    rows = noisy(vectors.photos, large)
    yield from searched("partitioned", rows, vectors.queries)
    yield from turned_over(vectors, 100_000 if not quick else 20_000)
    if not quick:
        for code in RIVALS:
            yield rival(code, rows, vectors.queries)


def real_vectors() -> Vectors | None:
    """What the demonstration on the real feed left, None when it was not run."""
    if not (DEMO_RUN / "index").is_dir() or not (DATA / REAL_FEED).is_file():
        return None
    from catalogue.feed import detect_preset, open_feed
    from export.index_feed import title_queries
    from training.retrieval import RETRIEVER

    feed = open_feed(DATA / REAL_FEED, detect_preset(DATA / REAL_FEED))
    queries = title_queries(feed, RETRIEVER.load(DEMO_RUN / "bundle"))
    return Vectors("real", open_snapshot(DEMO_RUN / "index").vectors, queries)


def drawn_vectors(rows: int, width: int = 256) -> Vectors:
    """Clusters of photos, and queries that lie off them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((rows // 20, width), dtype=np.float32)
    photos = unit(centres[generator.integers(0, len(centres), rows)] + generator.standard_normal((rows, width)))
    gap = unit(generator.standard_normal((1, width)))
    noise = 0.8 * unit(generator.standard_normal((2 * QUERIES, width)))
    return Vectors("drawn", photos, unit(photos[generator.integers(0, rows, 2 * QUERIES)] + noise + 0.8 * gap))


def noisy(photos: np.ndarray, rows: int) -> np.ndarray:
    """The photos and copies of them with noise, [rows, D] in all."""
    generator = np.random.default_rng(1)
    found = np.empty((rows, photos.shape[1]), np.float32)
    found[: min(rows, len(photos))] = photos[:rows]
    for start in range(len(photos), rows, 50_000):
        block = found[start : start + 50_000]
        noise = generator.standard_normal(block.shape, dtype=np.float32) * (NOISE / photos.shape[1] ** 0.5)
        block[:] = unit(photos[generator.integers(0, len(photos), len(block))] + noise)
    return found


def searched(name: str, photos: np.ndarray, queries: np.ndarray) -> Iterator[Row]:
    """Publishes rows, half of the queries to measure with, and asks the other half."""
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    half = len(queries) // 2
    start = time.perf_counter()
    publish(folder, indexed(len(photos)), lambda images: photos[numbers(images)], ENCODER, list(SHARES), queries[:half])
    build = time.perf_counter() - start
    snapshot = open_snapshot(folder, ENCODER)
    searcher, exact = Searcher(snapshot), Searcher(snapshot, exact=True)
    more = (folder / PARTITION).stat().st_size if snapshot.manifest.partition else 0
    plain = None
    for kept in (None, *SHARES):
        wanted = {} if kept is None else {kept: ["yes"]}
        first, milliseconds, recall, found = asked(searcher, exact, queries[half:], wanted)
        plain = plain or milliseconds[0]
        yield {
            "index": name,
            "rows": len(photos),
            "filter": kept or "none",
            "p50_ms": milliseconds[0],
            "p99_ms": milliseconds[1],
            "times_unfiltered": milliseconds[0] / plain,
            "first_ms": first,
            "recall_at_10": recall,
            "fewest_found": found,
            "exact_p50_ms": asked(exact, exact, queries[half : half + 20], wanted)[1][0],
            "build_seconds": build,
            "memory_over_vectors": 1 + more / photos.nbytes,
        }


def asked(
    searcher: Searcher, exact: Searcher, queries: np.ndarray, wanted: dict[str, list[str]]
) -> tuple[float, tuple[float, float], float, int]:
    """Milliseconds of the first query, p50 and p99 of all, recall@10 beside an exact search, and the fewest found."""
    times, recalls, found = [], [], []
    start = time.perf_counter()
    searcher.search(queries[:1], K, wanted)
    first = 1e3 * (time.perf_counter() - start)
    for query in queries:
        start = time.perf_counter()
        [hits] = searcher.search(query[None], K, wanted)
        times.append(1e3 * (time.perf_counter() - start))
        [true] = exact.search(query[None], K, wanted) if searcher is not exact else [hits]
        recalls.append(np.isin(true.products, hits.products).mean())
        found.append(len(hits.products))
    p50, p99 = (float(figure) for figure in np.percentile(times, [50, 99]))
    return first, (p50, p99), float(np.mean(recalls)), min(found)


def turned_over(vectors: Vectors, rows: int) -> Iterator[Row]:
    """One percent changed, then ten times all of it: seconds, what was embedded, and recall."""
    folder = RUNS / "turnover"
    shutil.rmtree(folder, ignore_errors=True)
    photos = noisy(vectors.photos, 2 * rows)
    half = len(vectors.queries) // 2
    moves = [0, rows // 100, *(rows * turn + rows // 100 for turn in range(1, 11))]
    for turn, first in enumerate(moves):
        start = time.perf_counter()
        summary = publish(
            folder,
            indexed(rows, first),
            lambda images: photos[numbers(images) % len(photos)],
            ENCODER,
            list(SHARES),
            vectors.queries[:half],
        )
        seconds = time.perf_counter() - start
        snapshot = open_snapshot(folder)
        _, _, recall, _ = asked(Searcher(snapshot), Searcher(snapshot, exact=True), vectors.queries[half:], {})
        yield {
            "index": "turnover",
            "rows": rows,
            "run": turn,
            "embedded": summary.embedded,
            "recall_at_10": recall,
            "publish_seconds": seconds,
        }


def rival(code: str, photos: np.ndarray, queries: np.ndarray) -> Row:
    """Another index of faiss, candidates compared exactly, at the least effort that finds 98 % of the first ten."""
    lists = 2 ** round(np.log2(4 * len(photos) ** 0.5))
    index = faiss.index_factory(photos.shape[1], code.format(lists=lists), faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    index.train(photos[: TRAINING_ROWS_A_LIST * lists])
    index.add(photos)
    build = time.perf_counter() - start
    truth = np.argpartition(-(queries @ photos.T), K - 1, axis=1)[:, :K]

    def ask(query: np.ndarray) -> np.ndarray:
        rows = index.search(query[None], 100)[1][0]
        rows = rows[rows >= 0]
        return rows[np.argsort(-(photos[rows] @ query))[:K]]

    for effort in (16, 32, 64, 128, 256, 512):
        if code.startswith("HNSW"):
            index.hnsw.efSearch = max(effort, 100)
        else:
            faiss.extract_index_ivf(index).nprobe = effort
        times, recall = timed(ask, queries, truth)
        if recall >= 0.98:
            break
    return {
        "index": code,
        "rows": len(photos),
        "filter": "none",
        "p50_ms": times,
        "recall_at_10": recall,
        "build_seconds": build,
        "effort": effort,
    }


def timed(ask: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Median milliseconds and recall."""
    times, recalls = [], []
    for query, true in zip(queries, truth, strict=True):
        start = time.perf_counter()
        rows = ask(query)
        times.append(1e3 * (time.perf_counter() - start))
        recalls.append(np.isin(true, rows).mean())
    return float(np.median(times)), float(np.mean(recalls))


def indexed(rows: int, first: int = 0) -> Iterator[IndexedProduct]:
    """Products whose images are their numbers as text, with attributes that keep so many of them."""
    for start in range(first, first + rows, 10_000):
        count = min(10_000, first + rows - start)
        chance = np.random.default_rng((7, start)).random((count, len(SHARES)))
        for place, row in enumerate(chance < list(SHARES.values())):
            kept = {name: "yes" if keep else "no" for name, keep in zip(SHARES, row.tolist(), strict=True)}
            yield IndexedProduct(str(start + place), [str(start + place).encode()], kept)


def numbers(images: Sequence[bytes]) -> np.ndarray:
    """The rows that such images stand for."""
    return np.array([int(image) for image in images])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row brought to unit length."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
