"""The demonstration of `match_colours`: start Triton on an exported repository, ask about held-out products, measure.

Everything goes through the server as any caller would: a contact sheet of a dozen products, the share of photos and of
whole products right over the test split, p50 and p99 of single requests. What is printed is also written as JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from catalogue.colour_groups import ColourProduct, colour_products
from catalogue.colour_sheet import LabelledPhoto, draw_colour_sheet
from catalogue.feed import detect_preset, open_feed
from client import ColourMatch, ShelfwiseClient
from serving.server import TritonServer
from training.colour_bundle import load_colour_bundle
from training.colour_metrics import ColourReport, colour_report
from training.match_colours import report_lines

SHOWN = 12
MOST_SHOWN_PHOTOS = 6
LATENCY_REQUESTS = 300


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("feed", type=Path)
    parser.add_argument("--repository", type=Path, required=True, help="model repository, from `shelfwise export`")
    parser.add_argument("--bundle", type=Path, help="print what training measured, too")
    parser.add_argument("--output", type=Path, required=True, help="folder for contact sheet, results and Triton's log")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if arguments.bundle is not None:
        metrics = load_colour_bundle(arguments.bundle).config.metrics
        rows.append({"measured": "PyTorch", **metrics})
        print("held-out products in PyTorch", *report_lines(metrics), sep="\n  ")
    products = colour_products(open_feed(arguments.feed, detect_preset(arguments.feed)), "test")
    log = arguments.output / "triton-colours.log"
    print(f"starting Triton on {arguments.repository} (log: {log})", flush=True)
    with TritonServer(arguments.repository, grpc_port=0, metrics_port=0, log_file=log) as server:
        with ShelfwiseClient(server.url, timeout=30.0) as client:
            start = time.perf_counter()
            answers = [client.match_colours(product.images, product.labels) for product in products]
            seconds = time.perf_counter() - start
            served = measured(products, answers)
            print(f"held-out products through the server: {served.products} products, {served.images} photos")
            for name, share in served.flat().items():
                print(f"  {name:20} {share:.4f}")
            rows.append(
                {"measured": "through the server", **asdict(served), "products_per_second": len(products) / seconds}
            )
            latency = measure_latency(client, products)
            print(f"one request at a time: p50 {latency['p50_ms']:.2f} ms  p99 {latency['p99_ms']:.2f} ms")
            rows.append({"measured": "one request at a time", "requests": LATENCY_REQUESTS, **latency})
            sheet = arguments.output / "colour-sheet.png"
            show(client, products, sheet)
    packages = ("torch", "onnxruntime", "tritonclient", "numpy", "scipy")
    print(f"contact sheet: {sheet}")
    print(f"results:       {results.write('demo-colours', rows, packages, arguments.output)}")


def measured(products: Sequence[ColourProduct], answers: Sequence[Sequence[ColourMatch]]) -> ColourReport:
    """The report of what a server answered."""
    return colour_report(
        (np.array([match.probabilities for match in matches]), np.array(product.answers))
        for product, matches in zip(products, answers, strict=True)
    )


def measure_latency(client: ShelfwiseClient, products: Sequence[ColourProduct]) -> dict[str, float]:
    """Milliseconds that single requests take, one after another: p50 and p99, after a warm-up."""
    milliseconds = []
    for request in range(-20, LATENCY_REQUESTS):
        product = products[request % len(products)]
        start = time.perf_counter()
        client.match_colours(product.images, product.labels, one_to_one=True)
        if request >= 0:
            milliseconds.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def show(client: ShelfwiseClient, products: Sequence[ColourProduct], path: Path) -> None:
    """Draws the first products of three to six photos with the one-to-one answer, green where it is right."""
    shown = [product for product in products if 3 <= len(product.images) <= MOST_SHOWN_PHOTOS][:SHOWN] or products[
        :SHOWN
    ]
    drawn = []
    for product in shown:
        matches = client.match_colours(product.images, product.labels, one_to_one=True)
        drawn.append(
            [
                LabelledPhoto(image, match.label, match.index, match.probability, match.index == answer)
                for image, match, answer in zip(product.images, matches, product.answers, strict=True)
            ]
        )
    draw_colour_sheet(drawn, path)


if __name__ == "__main__":
    main()
