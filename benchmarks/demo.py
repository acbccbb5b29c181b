"""The demonstration of a system: start Triton on an exported repository, ask it about held-out products, and measure.

    python -m benchmarks.demo SYSTEM FEED --bundle RUN/bundle --repository DIR --output DIR

Everything goes through the server as any caller would.  What a system shows and measures is in benchmarks/demos/; what
is printed is also written as JSON beside the contact sheet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from catalogue.feed import detect_preset, open_feed
from client import ShelfwiseClient
from export.systems import SYSTEMS, load_bundle
from repository.release import Release, current
from serving.server import TritonServer

LATENCY_REQUESTS = 300
WARM_UP_REQUESTS = 20
PACKAGES = ("torch", "onnxruntime", "tritonclient", "numpy")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("feed", type=Path)
    parser.add_argument("--repository", type=Path, required=True, help="model repository, from `shelfwise export`")
    parser.add_argument("--bundle", type=Path, required=True, help="of the run; its held-out figures are shown, too")
    parser.add_argument("--output", type=Path, required=True, help="folder for contact sheet, results and Triton's log")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    system, bundle = load_bundle(arguments.bundle)
    if system.name != arguments.system:
        parser.error(f"{arguments.bundle} is of the system {system.name!r}")
    module, _, name = system.demo.partition(":")
    demonstrate = getattr(import_module(module), name)
    print("held-out products in PyTorch", *system.report(bundle.config.metrics), sep="\n  ")
    rows: list[dict[str, Any]] = [{"measured": "PyTorch", **bundle.config.metrics}]
    feed = open_feed(arguments.feed, detect_preset(arguments.feed))
    log = arguments.output / f"triton-{system.name}.log"
    print(f"starting Triton on {arguments.repository} (log: {log})", flush=True)
    with TritonServer(arguments.repository, grpc_port=0, metrics_port=0, log_file=log) as server:
        with ShelfwiseClient(server.url, timeout=30.0) as client:
            metadata = client.server_metadata(next(iter(Release.load(current(arguments.repository)).ensembles)))
            print(f"{metadata.name} {metadata.version} is ready on {server.url}\n", flush=True)
            rows += demonstrate(client, feed, arguments.output)
    print(f"results:       {results.write(f'demo-{system.name}', rows, PACKAGES, arguments.output)}")


def one_at_a_time(ask: Callable[[Any], object], asked: Sequence[Any]) -> dict[str, Any]:
    """Milliseconds that single requests take, one after another: p50 and p99, after a warm-up; printed, too."""
    milliseconds = []
    for request in range(-WARM_UP_REQUESTS, LATENCY_REQUESTS):
        start = time.perf_counter()
        ask(asked[request % len(asked)])
        if request >= 0:
            milliseconds.append(1e3 * (time.perf_counter() - start))
    p50, p99 = (float(figure) for figure in np.percentile(milliseconds, [50, 99]))
    print(f"one request at a time: p50 {p50:.2f} ms  p99 {p99:.2f} ms")
    return {"measured": "one request at a time", "requests": LATENCY_REQUESTS, "p50_ms": p50, "p99_ms": p99}


if __name__ == "__main__":
    main()
