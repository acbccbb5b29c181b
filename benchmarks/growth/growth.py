"""How cost grows with size: label tables and training steps over categories, requests over products, feeds over rows.

Every size is measured in a process of its own, so that its peak memory is its own. The exponent is the slope of the
straight line through log(cost) against log(size): 1 is linear, 2 quadratic, 0 does not grow.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.growth.report import write_report
from benchmarks.isolated import in_own_process
from benchmarks.results import write
from catalogue.feed import open_feed, write_feed
from catalogue.product import Product
from catalogue.sample import sample_products
from models.category_head import CategoryHead, CategoryHeadConfig
from training.labels import NeighbourTable, neighbours_of_embeddings
from training.losses import LabelLoss

PACKAGES = ("torch", "numpy", "pyarrow", "onnxruntime")
CATEGORIES = (100, 1_000, 10_000, 100_000)
TABLE_CATEGORIES = (100, 1_000, 10_000, 30_000)
"""A table of 100,000 labels takes minutes: suite quality, module neighbours."""
REQUEST_ROWS = (1, 2, 4, 8, 16, 32, 64)
FEED_ROWS = (10_000, 100_000, 1_000_000)
WIDTH, BATCH = 256, 256
MAX_BATCH = 32
Row = dict[str, Any]


def main(quick: bool, output: Path) -> None:
    """Measure all four, write growth.json with its tables and plot."""
    rows: list[Row] = []
    for measured in (
        grown("label table", "categories", label_table, TABLE_CATEGORIES[: 3 if quick else 4]),
        grown("training step of the head", "categories", training_step, CATEGORIES[: 3 if quick else 4]),
        grown_requests(quick),
        grown_feed((1_000, 10_000) if quick else FEED_ROWS),
    ):
        for row in measured:
            rows.append(row)
            print({name: value for name, value in row.items() if name != "noise"}, flush=True)
            path = write("growth", rows, PACKAGES, output)
    print("Wrote", path, *write_report(path))


def grown(what: str, unit: str, measure: Callable[[int], list[float]], sizes: Sequence[int]) -> Iterator[Row]:
    """A row a size, then one with the exponents.

    Args:
        what: is measured.
        unit: of the sizes.
        measure: seconds of each repetition at a size.
        sizes: in order.
    """
    rows = []
    for size in sizes:
        row: Row = {"measured": what, "unit": unit, "size": size}
        try:
            seconds, memory = in_own_process(measure, size)
            row |= timing(seconds) | {"memory_mb": memory / 1e6}
            rows.append(row)
        except Exception as error:  # killed for memory: the smaller sizes still say something
            row["error"] = f"{type(error).__name__}: {error}"
        yield row
    yield exponents(what, unit, rows)


def timing(seconds: Sequence[float]) -> Row:
    """The median of repetitions and their spread."""
    middle = statistics.median(seconds)
    return {"seconds": middle, "noise": {"seconds": (max(seconds) - min(seconds)) / middle}}


def exponents(what: str, unit: str, rows: Sequence[Row]) -> Row:
    """The slopes over the larger half of the sizes, where what does not grow has lost its weight, and over all."""
    found: Row = {"measured": f"{what}: exponents", "unit": unit}
    if len(rows) >= 2:
        found["time_exponent"] = slope([(row["size"], row["seconds"]) for row in rows])
        found["time_exponent_of_the_last_step"] = slope([(row["size"], row["seconds"]) for row in rows[-2:]])
        grown_memory = [(row["size"], row["memory_mb"]) for row in rows if row.get("memory_mb", 0) > 1]
        if len(grown_memory) >= 2:
            found["memory_exponent"] = slope(grown_memory)
    return found


def slope(points: Iterable[tuple[float, float]]) -> float:
    """Of the least-squares line through the logarithms."""
    sizes, costs = zip(*points, strict=True)
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def label_table(categories: int) -> list[float]:
    """Seconds to find the 20 nearest labels of every label, from embeddings of width 384."""
    embeddings = torch.from_numpy(np.random.default_rng(0).standard_normal((categories, 384), np.float32))
    return repeated(lambda: neighbours_of_embeddings(embeddings), 1 if categories > 5_000 else 3)


def training_step(categories: int) -> list[float]:
    """Seconds of one step of the head, forward, loss with label neighbours, backward and update."""
    table = ring_table(categories)
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=categories))
    loss = LabelLoss(table, gamma=2.0, kl_weight=1.0)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    image_embeds, text_embeds = torch.randn(2, BATCH, WIDTH).unbind()
    present = torch.ones(BATCH, 1, dtype=torch.bool)
    labels = torch.randint(0, categories, (BATCH,))

    def step() -> None:
        loss(head(image_embeds, text_embeds, present, present), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return repeated(step, 5)


def ring_table(categories: int, neighbours: int = 20, alpha: float = 0.1) -> NeighbourTable:
    """Every label's neighbours are the next ones: what a step costs does not depend on which labels are near."""
    ids = (torch.arange(categories)[:, None] + torch.arange(neighbours + 1)) % categories
    weights = torch.full((categories, neighbours + 1), alpha / neighbours)
    weights[:, 0] = 1 - alpha
    return NeighbourTable(ids.int(), torch.ones_like(weights), weights)


def repeated(function: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of several calls, after one that is not counted where there are several."""
    if times > 1:
        function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def grown_requests(quick: bool) -> Iterator[Row]:
    """A call of n products to a served `categorize`: one request up to the largest batch, then several."""
    from benchmarks.serving.subjects import subject
    from client import Item, ShelfwiseClient
    from serving.server import TritonServer

    served = subject("small")
    products = cycle([Item(product.images[0], product.title) for product in served.products])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        with (
            TritonServer(served.repository, grpc_port=0, metrics_port=0, log_file=log) as server,
            ShelfwiseClient(server.url, timeout=60.0) as client,
        ):
            for size in REQUEST_ROWS:
                items = list(islice(products, size))
                ask = partial(_ask, client, items)
                ask()
                rows.append(
                    {"measured": "a call of n products", "unit": "products", "size": size}
                    | timing(repeated(ask, 5 if quick else 15))
                )
                yield rows[-1]
    yield exponents("a call of n products", "products", rows)


def _ask(client: Any, items: Sequence[Any]) -> None:
    for answer in client.categorize_many(items, batch_size=min(MAX_BATCH, len(items)), in_flight=1):
        if isinstance(answer, Exception):
            raise answer


def grown_feed(sizes: Sequence[int]) -> Iterator[Row]:
    """Reading a Parquet feed from front to back, pictures included."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for size in sizes:
            paths[size] = Path(folder) / f"{size}.parquet"
            write_feed(paths[size], _many_products(size))
        yield from grown("reading a feed", "rows", partial(read_feed, paths), sizes)


def _many_products(count: int) -> Iterator[Product]:
    """Drawn products again and again, each time under another id."""
    drawn = list(sample_products(1_000, seed=3))
    for number, product in enumerate(islice(cycle(drawn), count)):
        yield replace(product, id=f"{number:08d}")


def read_feed(paths: dict[int, Path], size: int) -> list[float]:
    """Seconds to read a feed of `size` rows, and a check that all were there."""

    def read() -> None:
        found = sum(1 for _ in open_feed(paths[size]))
        if found != size:
            raise RuntimeError(f"read {found} products of a feed of {size}")

    return repeated(read, 1)
