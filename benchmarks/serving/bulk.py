"""A catalogue through `ShelfwiseClient.categorize_many`: batches of rows, several requests in flight."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from benchmarks.results import NOT_MEASURED
from benchmarks.serving.targets import TIMEOUT
from catalogue.product import Product
from client import Item, ShelfwiseClient, ShelfwiseError

RETURNED = 20


def bulk(url: str, products: Sequence[Product], batch: int, in_flight: int, seconds: float) -> dict[str, float | str]:
    """Throughput of an endless stream of products; a third of `seconds` more runs before it is counted.

    Returns:
        products_per_second. A row of a stream has no latency of its own: p50_ms and p90_ms say so.

    Raises:
        ShelfwiseError: the first row that was not answered.
    """
    items = itertools.cycle([Item(product.images[0], product.title) for product in products])
    with ShelfwiseClient(url, timeout=TIMEOUT) as client:
        answers = client.categorize_many(items, k=RETURNED, batch_size=batch, in_flight=in_flight)
        start = counted = 0.0
        begin = time.perf_counter()
        for answer in answers:
            if isinstance(answer, ShelfwiseError):
                raise answer
            now = time.perf_counter()
            if start:
                counted += 1
                if now - start >= seconds:
                    break
            elif now - begin >= seconds / 3:
                start = now
        answers.close()
    return {"products_per_second": counted / (now - start), "p50_ms": NOT_MEASURED, "p90_ms": NOT_MEASURED}
