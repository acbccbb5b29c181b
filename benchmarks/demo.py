"""The demonstration: start Triton on an exported repository, ask it about held-out products, and measure.

Everything goes through the server as any caller would: top-5 of a handful of products, accuracy over the test split
with both inputs, the image alone and the title alone, p50 and p99 of single requests, a contact sheet.  What is printed
is also written as JSON beside the sheet.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from benchmarks import results
from catalogue.feed import detect_preset, open_feed
from catalogue.images import is_readable
from catalogue.product import Product, join_path
from client import Categorization, Item, ShelfwiseClient, ShelfwiseError
from serving.server import TritonServer
from training.bundle import load_bundle

SHOWN = 12
LATENCY_REQUESTS = 300
BATCH = 16
MODALITIES = {"image + title": (True, True), "image": (True, False), "title": (False, True)}


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out products whose category came first, and was among the first five."""

    products: int
    top_1: float
    top_5: float
    products_per_second: float


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("feed", type=Path)
    parser.add_argument("--repository", type=Path, required=True, help="model repository, from `shelfwise export`")
    parser.add_argument("--bundle", type=Path, help="print what training measured for both recipes, too")
    parser.add_argument("--output", type=Path, required=True, help="folder for contact sheet, results and Triton's log")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    feed = open_feed(arguments.feed, detect_preset(arguments.feed), splits=["test"])
    products = [product for product in feed if product.category and all(map(is_readable, product.images[:1]))]

    rows: list[dict[str, Any]] = []
    if arguments.bundle is not None:
        rows += recipe_rows(load_bundle(arguments.bundle).config.metrics)
    log = arguments.output / "triton.log"
    print(f"starting Triton on {arguments.repository} (log: {log})", flush=True)
    with TritonServer(arguments.repository, grpc_port=0, metrics_port=0, log_file=log) as server:
        with ShelfwiseClient(server.url, timeout=30.0) as client:
            metadata = client.server_metadata()
            print(f"{metadata.name} {metadata.version} is ready on {server.url}\n", flush=True)
            show(client, products[:SHOWN], arguments.output / "contact-sheet.png")
            print(f"held-out split through the server, {len(products)} products")
            for modality in MODALITIES:
                asked = having(products, modality)
                if not asked:
                    continue
                accuracy = measure_accuracy(client, asked, modality)
                print(
                    f"  {modality:14} top-1 {accuracy.top_1:.4f}  top-5 {accuracy.top_5:.4f}"
                    f"  ({accuracy.products} products, {accuracy.products_per_second:.0f}/s)",
                    flush=True,
                )
                rows.append({"measured": "through the server", "modality": modality, **vars(accuracy)})
            latency = measure_latency(client, products)
            print(f"one request at a time: p50 {latency['p50_ms']:.2f} ms  p99 {latency['p99_ms']:.2f} ms")
            rows.append({"measured": "one request at a time", "requests": LATENCY_REQUESTS, **latency})
    packages = ("torch", "onnxruntime", "tritonclient", "numpy")
    print(f"contact sheet: {arguments.output / 'contact-sheet.png'}")
    print(f"results:       {results.write('demo', rows, packages, arguments.output)}")


def recipe_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Prints the published recipe and fine-tuning side by side, as training measured them in PyTorch."""
    rows = []
    print("held-out split in PyTorch: encoders frozen (the published recipe) and fine-tuned end to end")
    for recipe in ("frozen", "finetuned"):
        for modality, report in metrics.get(recipe, {}).items():
            served = "  (served)" if recipe == metrics["served"] else ""
            print(f"  {recipe:10} {modality:14} top-1 {report['top_1']:.4f}  top-5 {report['top_5']:.4f}{served}")
            rows.append({"measured": "PyTorch", "recipe": recipe, "modality": modality, **report})
    return rows


def show(client: ShelfwiseClient, products: Sequence[Product], sheet: Path) -> None:
    """Prints the five most probable categories of some products and draws them on a contact sheet."""
    answers = [client.categorize(image=first_image(product), title=product.title, k=5) for product in products]
    for product, answer in zip(products, answers, strict=True):
        print(f"{product.title or '(no title)'}   [{join_path(product.category)}]")
        for category in answer.categories:
            mark = "✓" if category.path == product.category else " "
            print(f"  {mark} {category.probability:.4f}  {category.label}")
    print()
    draw_contact_sheet(products, answers, sheet)


def having(products: Sequence[Product], modality: str) -> list[Product]:
    """Those that have what a modality needs."""
    use_image, use_title = MODALITIES[modality]
    return [
        product
        for product in products
        if (product.images or not use_image) and (product.title.strip() or not use_title)
    ]


def measure_accuracy(client: ShelfwiseClient, products: Sequence[Product], modality: str) -> Accuracy:
    """Categorizes products that have what the modality needs through the server.

    Raises:
        ShelfwiseError: a product could not be answered.
    """
    use_image, use_title = MODALITIES[modality]
    items = (
        Item(first_image(product) if use_image else None, product.title if use_title else None) for product in products
    )
    first = within_five = 0
    start = time.perf_counter()
    for product, answer in zip(products, categorized(client, items), strict=True):
        paths = [category.path for category in answer.categories]
        first += paths[0] == product.category
        within_five += product.category in paths
    seconds = time.perf_counter() - start
    count = len(products)
    return Accuracy(count, first / count, within_five / count, count / seconds)


def categorized(client: ShelfwiseClient, items: Iterator[Item]) -> Iterator[Categorization]:
    """The answers to a stream of items; an item that failed ends the measurement."""
    for answer in client.categorize_many(items, k=5, batch_size=BATCH):
        if isinstance(answer, ShelfwiseError):
            raise answer
        yield answer


def measure_latency(client: ShelfwiseClient, products: Sequence[Product]) -> dict[str, float]:
    """Milliseconds that single requests take, one after another: p50 and p99, after a warm-up."""
    whole = [product for product in products if product.images and product.title.strip()] or list(products)
    milliseconds = []
    for request in range(-20, LATENCY_REQUESTS):
        product = whole[request % len(whole)]
        start = time.perf_counter()
        client.categorize(image=first_image(product), title=product.title, k=5)
        if request >= 0:
            milliseconds.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def first_image(product: Product) -> bytes | None:
    """The main image of a product, None when it has none."""
    return product.images[0] if product.images else None


def draw_contact_sheet(products: Sequence[Product], answers: Sequence[Categorization], path: Path) -> None:
    """Draws each product with its first three answers, the right one in green."""
    columns, width, picture, height = 4, 300, 170, 270
    rows = -(-len(products) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (product, answer) in enumerate(zip(products, answers, strict=True)):
        left, top = (number % columns) * width, (number // columns) * height
        if product.images:
            image = ImageOps.contain(Image.open(io.BytesIO(product.images[0])).convert("RGB"), (width - 20, picture))
            sheet.paste(image, (left + (width - image.width) // 2, top + 6))
        pen.text((left + 10, top + picture + 14), product.title[:44] or "(no title)", "black", font_size=13)
        for line, category in enumerate(answer.categories[:3]):
            colour = "#1a7f37" if category.path == product.category else "#57606a"
            text = f"{category.probability:.3f}  {category.path[-1]}"
            pen.text((left + 10, top + picture + 34 + 17 * line), text, colour, font_size=13)
    sheet.save(path)


if __name__ == "__main__":
    main()
