"""How long `match_colours` takes by photos and labels: real Triton beside the same files in one process.

The networks have the recipe's architecture and random weights: answers are checked against each other in the same run,
what they mean makes no difference to speed. In process means decoding, cleaning, tokenising and ONNX Runtime called one
after another with all cores, which is the limit that a server can come near. Then where the time of one request goes,
step by step, and how many products a second 16 callers get whose products are all of different sizes, with and without
the matcher's dynamic batches.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import results
from benchmarks.serving import triton_statistics
from catalogue.colour_labels import clean_labels
from catalogue.colour_sample import generate_colour_sample
from catalogue.colour_words import CHINESE
from catalogue.feed import open_feed
from catalogue.images import decode_image
from client import ShelfwiseClient
from export.bundles import export_bundle
from export.match_colours import pair_present
from models.colour_matcher import ColourHead, ColourMatcher
from models.tokenizer import encode
from repository.release import RELEASE_FILE, current
from serving.server import TritonServer
from training.match_colours import (
    COLOUR_MATCHER,
    ColourMatcherBundle,
    ColourMatcherConfig,
    ColourSettings,
    colour_towers,
    label_tokenizer,
    sample_groups,
)

SIZES = ((1, 2), (2, 2), (4, 4), (8, 8), (8, 16), (16, 16), (32, 64), (128, 256))
QUICK_SIZES = ((2, 2), (8, 16))
TOLERANCE = 1e-4
ENSEMBLE, MATCHER = "match_colours", "colour_matcher"
BROKEN_DOWN = (4, 4)
CALLERS = 16
MIXED_PRODUCTS = 256  # of 2 to 12 photos, and up to 8 labels more than photos


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON to `output`; quick: two sizes, fewer requests."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = untrained_bundle(Path(folder))
        export_bundle(Path(folder) / "bundle", Path(folder) / "repository")
        repository = current(Path(folder) / "repository")
        session = onnxruntime.InferenceSession(repository / "colour_matcher" / "1" / "model.onnx")
        photos = [product.images[0] for product in bundle.samples]
        log = Path(folder) / "triton.log"
        with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=log) as server:
            with ShelfwiseClient(server.url, timeout=60.0) as client:
                for n, m in QUICK_SIZES if quick else SIZES:
                    row = measure(client, session, bundle, [photos[i % len(photos)] for i in range(n)], m, quick)
                    print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
                    rows.append(row)
                rows += broken_down(client, server, [photos[i] for i in range(BROKEN_DOWN[0])], BROKEN_DOWN[1], quick)
            rows.append({"matcher": "dynamic batches", **mixed(server, photos, quick)})
        (repository / RELEASE_FILE).unlink()  # a configuration is changed
        config = repository / MATCHER / "config.pbtxt"
        config.write_text(config.read_text().replace("dynamic_batching { }", ""))
        with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=log) as server:
            rows.append({"matcher": "one request at a time", **mixed(server, photos, quick)})
        print(*rows[-2:], sep="\n")
    results.write("serving-colours", rows, ("torch", "onnxruntime", "tritonclient", "numpy"), output)


def untrained_bundle(folder: Path) -> ColourMatcherBundle:
    """A bundle of the recipe's architecture with random weights, saved to `folder`/bundle."""
    generate_colour_sample(folder / "colours.parquet", products=16)
    groups = sample_groups(list(open_feed(folder / "colours.parquet")))
    settings = ColourSettings()
    tokenizer = label_tokenizer(sorted(CHINESE), settings, clean_labels)
    towers = colour_towers(settings, tokenizer)
    model = ColourMatcher(towers.image_encoder, towers.text_encoder, ColourHead(settings.matcher)).eval()
    config = ColourMatcherConfig(
        image_encoder=model.image_encoder.config, text_encoder=model.text_encoder.config, matcher=settings.matcher
    )
    bundle = ColourMatcherBundle(config, model, tokenizer, [product for group in groups for product in group])
    COLOUR_MATCHER.save(folder / "bundle", bundle)
    return bundle


def measure(
    client: ShelfwiseClient,
    session: onnxruntime.InferenceSession,
    bundle: ColourMatcherBundle,
    photos: list[bytes],
    labels: int,
    quick: bool,
) -> dict[str, Any]:
    """Milliseconds of one request at a time, served and in process.

    Raises:
        RuntimeError: the server answers otherwise than the same files in process.
    """
    texts = label_texts(labels)
    tower = bundle.config.image_encoder

    def in_process() -> np.ndarray:
        pixels = np.stack([decode_image(photo, tower.height, tower.width) for photo in photos])
        input_ids, attention_mask = encode(bundle.tokenizer, clean_labels(texts))
        feed = {
            "pixel_values": pixels.ravel(),
            "input_ids": input_ids.ravel(),
            "attention_mask": attention_mask.ravel(),
        }
        feed["pair_present"] = pair_present([(len(photos), labels)]).numpy()
        return session.run(["probability"], feed)[0][0, : len(photos), :labels]

    def served() -> np.ndarray:
        return np.array([match.probabilities for match in client.match_colours(photos, texts, one_to_one=True)])

    difference = float(np.abs(in_process() - served()).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{len(photos)} photos, {labels} labels: served and in process differ by {difference:.1e}")
    row: dict[str, Any] = {"photos": len(photos), "labels": labels, "largest_difference": difference}
    seconds = 0.5 if quick else 3.0
    for name, call in (("served", served), ("in_process", in_process)):
        row |= {f"{name}_{percentile}": value for percentile, value in percentiles(call, seconds).items()}
    return row | {"p50_ratio": round(row["served_p50_ms"] / row["in_process_p50_ms"], 3)}


def label_texts(count: int) -> list[str]:
    """So many different labels."""
    return [f"{name} {place}" for place, name in zip(range(count), 10 * sorted(CHINESE), strict=False)]


def broken_down(
    client: ShelfwiseClient, server: TritonServer, photos: list[bytes], labels: int, quick: bool
) -> list[dict[str, Any]]:
    """Where the milliseconds of one request at a time go, a row a step."""
    texts = label_texts(labels)
    before = triton_statistics.read(server.url)
    begin, count = time.perf_counter(), 50 if quick else 300
    for _ in range(count):
        client.match_colours(photos, texts, one_to_one=True)
    caller_ms = 1e3 * (time.perf_counter() - begin) / count
    order = triton_statistics.steps(server.repository, ENSEMBLE)
    steps = triton_statistics.breakdown(before, triton_statistics.read(server.url), order, caller_ms, ENSEMBLE)
    rows = [{"photos": len(photos), "labels": labels, **step} for step in steps]
    rows.append({"photos": len(photos), "labels": labels, "step": "all", "mean_ms": caller_ms})
    print(*rows, sep="\n", flush=True)
    return rows


def mixed(server: TritonServer, photos: list[bytes], quick: bool) -> dict[str, float]:
    """Products of different sizes asked about by several callers at once: products a second, products a batch."""
    draw = random.Random(0)
    asked = []
    for _ in range(MIXED_PRODUCTS // 4 if quick else MIXED_PRODUCTS):
        n = draw.randint(2, 12)
        asked.append((draw.choices(photos, k=n), label_texts(n + draw.randint(0, 8))))
    with ShelfwiseClient(server.url, timeout=60.0) as client, ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(lambda request: client.match_colours(*request), asked[:CALLERS]))
        before, begin = triton_statistics.read(server.url)[MATCHER], time.perf_counter()
        list(pool.map(lambda request: client.match_colours(*request), asked))
        seconds = time.perf_counter() - begin
    after = triton_statistics.read(server.url)[MATCHER]
    batches = after.batches - before.batches
    return {
        "callers": CALLERS,
        "products_per_second": len(asked) / seconds,
        "photos_per_second": sum(len(images) for images, _ in asked) / seconds,
        "mean_batch": (after.requests - before.requests) / batches,
    }


def percentiles(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds of calls one after another, after a tenth of the time for warming up."""
    milliseconds: list[float] = []
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < 1.1 * seconds or len(milliseconds) < 5:
        call()
        if now - begin > 0.1 * seconds:
            milliseconds.append(1e3 * (time.perf_counter() - now))
    values = np.percentile(milliseconds, [50, 90, 99])
    return {f"p{p}_ms": round(float(value), 3) for p, value in zip((50, 90, 99), values, strict=True)}
