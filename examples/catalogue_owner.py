"""A whole catalogue through a server: constant memory, an answer or a reason for every product, progress on the way.

    python examples/catalogue_owner.py feed.parquet answers.parquet --url 127.0.0.1:8001 --url 127.0.0.1:9001

Products are read while answers are written, never more than a few batches of them at a time. A broken picture costs its
own product only; a server that is gone ends the run within a minute instead of failing every product one by one.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalogue.feed import Feed, open_feed
from client import Item, Progress, ShelfwiseClient, ShelfwiseError

SCHEMA = pa.schema(
    {"id": pa.string(), "category": pa.string(), "probability": pa.float32(), "neighbour_kl": pa.float32()}
    | {"error": pa.string()}
)
ROWS_A_GROUP = 10_000


def answered(feed: Feed, client: ShelfwiseClient) -> Iterator[dict[str, object]]:
    """A row for every product of the feed, in order."""
    ids: deque[str] = deque()

    def items() -> Iterator[Item]:
        for product in feed:
            ids.append(product.id)
            yield Item(product.images[0] if product.images else None, product.title)

    def show(progress: Progress) -> None:
        rate = progress.answered / progress.seconds
        print(f"\r{progress.answered} products, {progress.failed} failed, {rate:.0f}/s", end="", file=sys.stderr)

    for answer in client.categorize_many(items(), k=1, batch_size=16, in_flight=8, timeout=10, progress=show):
        row: dict[str, object] = {"id": ids.popleft()}
        if isinstance(answer, ShelfwiseError):
            yield row | {"error": str(answer)}
        else:
            best = answer.categories[0]
            yield row | {
                "category": best.label, "probability": best.probability, "neighbour_kl": answer.neighbour_kl
            }  # fmt: skip


def main() -> None:
    """Feed in, Parquet out."""
    parser = argparse.ArgumentParser(description="Categorizes a feed.")
    parser.add_argument("feed", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--url", action="append", required=True)
    arguments = parser.parse_args()
    part = arguments.answers.with_suffix(".part")  # a run that is cut off leaves no half file under the right name
    with ShelfwiseClient(arguments.url) as client, pq.ParquetWriter(part, SCHEMA) as writer:
        rows = answered(open_feed(arguments.feed), client)
        while group := list(islice(rows, ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
    part.rename(arguments.answers)
    print(f"\n{arguments.answers} written", file=sys.stderr)


if __name__ == "__main__":
    main()
