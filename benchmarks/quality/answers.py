"""How good the categorizer's answers are, and how many products need no person, with every tower there is.

Each tower is trained by `shelfwise train`'s recipe with its defaults, on the real feed where it is at hand, else on a
drawn one.  Rows: every way to ask, over all test products and those unseen in title and photo, with what its
temperature and threshold (both of the validation split) are worth there; time is that of the whole command, processor
time that of all its threads.  A run that is there already is measured, not trained again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.markdown import Rows, markdown
from catalogue.feed import detect_preset, open_feed
from catalogue.sample import generate_sample
from models.efficientnet_lite import imagenet_weights
from training.categorize import CATEGORIZER, CategorizerConfig, CategorizeRecipe, CategorizeSettings
from training.recipe import train
from training.train import make_accelerator

RUNS = results.ROOT / "runs" / "benchmarks" / "answers"
SHARED = results.ROOT.parent / "shared"
DATA = Path(os.environ.get("SHELFWISE_DATA", SHARED / "data"))
DINOV2 = Path(os.environ.get("SHELFWISE_PRETRAINED", SHARED / "pretrained")) / "dinov2-small"
REAL_FEED = "fashion-60x80.parquet"
COSTS = ("seconds", "processor_seconds", "milliseconds_an_image")
TIMED_IMAGES = 20


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON and table to `output`; quick: a small drawn feed and one pass."""
    path = drawn_feed(600) if quick or not (DATA / REAL_FEED).is_file() else DATA / REAL_FEED
    rows: Rows = []
    for tower, settings in towers().items():
        given = settings.overridden({"finetune.epochs": 1}) if quick else settings
        for row in measured(path, tower, given):
            print(row, flush=True)
            rows.append(row)
            results.write("answers", rows, ("torch", "transformers", "numpy", "scipy"), output)
            (output / "answers.md").write_text(answers_table(rows) + "\n", encoding="utf-8")


def towers() -> dict[str, CategorizeSettings]:
    """The image encoders that can be had here."""
    found = {"from scratch": CategorizeSettings(image_tower="scratch")}
    if imagenet_weights() is not None:
        found["EfficientNet-Lite0"] = CategorizeSettings()
    if DINOV2.is_dir():
        found["DINOv2 ViT-S/14"] = CategorizeSettings(image_checkpoint=DINOV2)
    return found


def drawn_feed(products: int) -> Path:
    """The drawn catalogue, drawn on first use."""
    path = RUNS / f"drawn-{products}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate_sample(path, products)
    return path


def measured(path: Path, tower: str, settings: CategorizeSettings) -> Iterator[dict[str, Any]]:
    """A row a candidate and way to ask."""
    run = RUNS / path.stem / tower.replace("/", "-").replace(" ", "-")
    cost: dict[str, Any] = dict.fromkeys(COSTS, results.NOT_MEASURED)
    if not (run / "bundle").is_dir():
        wall, processor = time.perf_counter(), time.process_time()
        feed = open_feed(path, detect_preset(path))
        bundle = train(CategorizeRecipe, feed, settings, run, make_accelerator(), stores=RUNS / "store")
        CATEGORIZER.save(run / "bundle", bundle)
        cost |= {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    bundle = CATEGORIZER.load(run / "bundle")
    cost["milliseconds_an_image"] = milliseconds(bundle.model.image_encoder, bundle.config)
    metrics = bundle.config.metrics
    for candidate, reports in metrics.items():
        if not isinstance(reports, dict):
            continue
        described = {
            "feed": path.stem,
            "tower": tower,
            "candidate": candidate,
            "served": candidate == metrics["served"],
        }
        for way, report in reports.items():
            yield described | {"asked": way, **report, **cost}


@torch.no_grad()
def milliseconds(encoder: torch.nn.Module, config: CategorizerConfig) -> float:
    """Of the image encoder on one image, in PyTorch: the quickest of some calls."""
    size = config.image_encoder.height, config.image_encoder.width
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    calls = []
    for _ in range(TIMED_IMAGES):
        start = time.perf_counter()
        encoder(image)
        calls.append(1e3 * (time.perf_counter() - start))
    return min(calls)


def answers_table(rows: Rows) -> str:
    """Markdown: right answers, honesty and what is filed without a person, of each served tower and way to ask."""
    served = [row for row in rows if row["served"]]
    columns = ("tower", "asked", "top-1", "top-5", "near", "ECE", "sure from", "filed", "right", "filed at 99 %")
    lines = [
        (
            *(row["tower"], row["asked"], f"{row['top_1']:.4f}", f"{row['top_5']:.4f}", f"{row['near_in_top_5']:.2f}"),
            *(f"{row['calibration_error']:.3f}", lowest(row["sure"]["confidence"]), f"{row['sure']['share']:.1%}"),
            "" if row["sure"]["precision"] is None else f"{row['sure']['precision']:.2%}",
            f"{row['share_by_probability']['0.99']:.1%} / {row['share_by_neighbour_kl']['0.99']:.1%}",
        )
        for row in served
    ]
    costs = {row["tower"]: row for row in served}
    return "\n\n".join(
        (
            markdown(columns, lines),
            "Test split. near: of the first five answers, how many are among the 20 nearest labels. sure from: the\n"
            "probability from which `shelfwise categorize` says so, chosen on the validation split for 99 % right.\n"
            "filed, right: the share of products that have it, and of those that are right. filed at 99 %: the\n"
            "largest share that could be filed with 99 % right, by probability / by neighbour_kl.",
            risk_coverage(served),
            markdown(
                ("tower", "training, s", "processor, s", "ms an image"),
                [(tower, *(row[cost] for cost in COSTS)) for tower, row in costs.items()],
            ),
        )
    )


def lowest(probability: float) -> str:
    """The probability from which answers are sure, in words where none is."""
    return f"{probability:.3f}" if probability <= 1 else "never"


def risk_coverage(served: Rows) -> str:
    """Markdown: which share is filed from a probability on, and how much of that is right, over all test products."""
    whole = [row for row in served if "unseen" not in row["asked"]]
    if not whole:
        return ""
    confidences = [f"≥ {point['confidence']:g}" for point in whole[0]["by_probability"]]
    lines = []
    for row in whole:
        filed = (
            f"{point['share']:.1%}" + ("" if point["precision"] is None else f" at {point['precision']:.2%}")
            for point in row["by_probability"]
        )
        found = (row["mistakes_found_by_probability"], row["mistakes_found_by_neighbour_kl"])
        lines.append((row["tower"], row["asked"], *filed, " / ".join(f"{area:.3f}" for area in found if area)))
    columns = ("tower", "asked", *confidences, "mistakes found")
    return (
        f"{markdown(columns, lines)}\n\nFiled at which precision, by probability. mistakes found: the chance that a "
        "mistake has less probability / more\nneighbour_kl than a right answer."
    )
