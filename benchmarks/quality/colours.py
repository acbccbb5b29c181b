"""Does looking at all photos and labels of a product help? The matcher beside a classifier, and without its parts.

Three kinds of rows over the test products of a feed. Alone: a plain colour classifier (the matcher's image tower and a
linear layer, trained for as many passes over the photos as the matcher's towers and joint stage together), used
for each photo by itself. The recipe: what `shelfwise train match-colours` gives. Parts: heads of one budget and seed on
the same frozen contrastive towers, the whole one and ones without a part; "labels as written" skips their cleaning in
training and in the answer. Feeds: the real one where it is at hand, and the drawn one in Chinese and English.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import results
from catalogue.colour_groups import ColourGroups
from catalogue.colour_labels import clean_labels
from catalogue.colour_sample import generate_colour_sample
from catalogue.feed import detect_preset, open_feed
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, small_colour_tower
from models.matcher import MatcherConfig
from training.colour_examples import Clean, ColourPairs, ColourProducts
from training.colour_metrics import ColourReport, colour_report
from training.colour_tasks import ColourEvaluator, ColourFrozenTask, embed_photos
from training.match_colours import (
    ColourMaterial,
    ColourSettings,
    frozen_products,
    test_evaluators,
    train_colour_matcher,
    train_towers,
)
from training.train import Batch, TrainConfig, fit, make_accelerator

RUNS = results.ROOT / "runs" / "benchmarks" / "colours"
DATA = Path(os.environ.get("SHELFWISE_DATA", results.ROOT.parent / "shared" / "data"))
REAL_FEED = "fashion-60x80.parquet"
SEEDS = (0, 1, 2)
HEAD = TrainConfig(epochs=4, batch_size=64, learning_rate=5e-4)
WHOLE = MatcherConfig()
PARTS: dict[str, MatcherConfig] = {
    "three units": WHOLE,
    "two units": WHOLE.model_copy(update={"num_units": 2}),
    "one unit": WHOLE.model_copy(update={"num_units": 1}),
    "without cross-attention": WHOLE.model_copy(update={"cross_attention": False}),
    "dot product instead of f_edge": WHOLE.model_copy(update={"edge": "dot_product"}),
}
LABELS_AS_WRITTEN = "three units, labels as written"
STAGES = ("contrastive", "joint", "frozen")
PLAIN = ("real", "harder", "harder, more labels")  # what a classifier can be asked: it knows the feed's colours alone


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON and table to `output`; quick: a small drawn feed, one pass a stage, one seed."""
    rows: list[dict[str, Any]] = []
    seeds = SEEDS[:1] if quick else SEEDS
    settings = ColourSettings()
    if quick:
        stages = {stage: getattr(settings, stage).model_copy(update={"epochs": 1}) for stage in STAGES}
        settings = settings.model_copy(update=stages)
    for path in [drawn_feed(200)] if quick else feeds():
        for row in measure(path, settings, seeds):
            print(summary(row), flush=True)
            rows.append(row)
    results.write("colours", rows, ("torch", "transformers", "numpy", "scipy"), output)
    (output / "colours.md").write_text(table(rows), encoding="utf-8")


def feeds() -> list[Path]:
    """The real feed where it is at hand, and the drawn one."""
    return [*([DATA / REAL_FEED] if (DATA / REAL_FEED).is_file() else []), drawn_feed(1500)]


def drawn_feed(products: int) -> Path:
    """The drawn products, drawn on first use."""
    path = RUNS / f"drawn-{products}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate_colour_sample(path, products)
    return path


def measure(path: Path, settings: ColourSettings, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """All rows of a feed."""
    feed, folder, accelerator = open_feed(path, detect_preset(path)), RUNS / path.stem, make_accelerator()
    towers, material = train_towers(feed, settings, folder, accelerator)
    evaluators = evaluators_of(material, clean_labels)
    row = {"feed": path.stem, "seed": settings.seed}

    yield from rows(
        {**row, "matcher": "cosine of the towers"}, {k: e.cosine_report(towers) for k, e in evaluators.items()}
    )
    classifier = ColourClassifierTask(material, settings)
    epochs = settings.contrastive.epochs + settings.joint.epochs
    fit(classifier, settings.contrastive.model_copy(update={"epochs": epochs}), folder, accelerator)
    reports = {kind: classifier.report(evaluator) for kind, evaluator in evaluators.items() if kind in PLAIN}
    yield from rows({**row, "matcher": "plain classifier"}, reports)

    for seed in seeds:
        for name, config in [*PARTS.items(), (LABELS_AS_WRITTEN, WHOLE)]:
            clean = list if name == LABELS_AS_WRITTEN else clean_labels
            torch.manual_seed(seed)
            matcher = ColourMatcher(towers.image_tower, towers.label_tower, ColourHead(config))
            products = ColourProducts(material.examples, material.tokenizer, settings.noise, clean)
            embedded = frozen_products(matcher.image_tower, products, views=2)
            task = ColourFrozenTask(matcher, embedded, material.validation)
            with tempfile.TemporaryDirectory() as temporary:  # no checkpoint: the next part has the same name
                fit(task, HEAD.model_copy(update={"seed": seed}), Path(temporary), accelerator)
            reports = {kind: e.report(matcher.eval()) for kind, e in evaluators_of(material, clean).items()}
            yield from rows({**row, "matcher": name, "seed": seed}, reports)

    bundle = train_colour_matcher(feed, settings, folder, accelerator)
    for stage in ("joint", "frozen"):
        for kind, report in bundle.config.metrics.get(stage, {}).items():
            yield {**row, "matcher": f"recipe, {stage}", "asked": kind, **report}


def evaluators_of(material: ColourMaterial, clean: Clean) -> dict[str, ColourEvaluator]:
    """The recipe's ways to ask about the test split."""
    groups = ColourGroups(material.examples.variants, "test")
    return test_evaluators(material.examples, groups, material.tokenizer, clean)


def rows(row: dict[str, Any], reports: dict[str, ColourReport]) -> Iterator[dict[str, Any]]:
    """A row a kind of product."""
    for kind, report in reports.items():
        yield {**row, "asked": kind, **asdict(report)}


class ColourClassifier(nn.Module):
    """The image tower with a linear layer over all colours of the feed."""

    def __init__(self, tower: ColourTower, colours: int) -> None:
        super().__init__()
        self.tower = tower
        self.output = nn.Linear(tower.config.embed_dim, colours)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, H, W, 3] uint8 -> [N, C] logits; embeddings of unit length are brought to a size that can be sure."""
        return self.output(self.tower(pixel_values) * self.tower.config.embed_dim**0.5)


class ColourClassifierTask:
    """Trains a classifier of photos, and uses it on products one photo at a time."""

    name = "classifier"

    def __init__(self, material: ColourMaterial, settings: ColourSettings) -> None:
        self.material = material
        self.colours = material.examples.colours()
        torch.manual_seed(settings.seed)
        tower = small_colour_tower(settings.image_height, settings.image_width, settings.matcher.embed_dim)
        self.model = ColourClassifier(tower, len(self.colours))
        self.dataset = ColourPairs(material.examples, material.tokenizer, settings.noise, clean_labels)

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over all colours."""
        return F.cross_entropy(model(batch["pixel_values"]).float(), batch["colours"]), {}

    def evaluate(self) -> dict[str, float]:
        """The report on the validation products."""
        return self.report(self.material.validation).flat()

    @torch.no_grad()
    def report(self, evaluator: ColourEvaluator) -> ColourReport:
        """How well the classifier does when each photo chooses among the colours of its product."""
        examples = self.material.examples
        place = {colour: number for number, colour in enumerate(self.colours)}
        answered = []
        photos = np.array([row for group in evaluator.groups for row in group.photos])
        rows, inverse = np.unique(photos, return_inverse=True)
        embeddings = embed_photos(self.model.tower, examples, rows) * self.model.tower.config.embed_dim**0.5
        logits = self.model.output(embeddings)[inverse]
        start = 0
        for group in evaluator.groups:
            own = logits[start : start + len(group.photos)]
            start += len(group.photos)
            # A colour that training never showed has no class: nothing speaks for it.
            columns = [own[:, place[name]] if name in place else own.min(1).values for name in group.colours]
            answered.append((torch.stack(columns, 1).softmax(1).numpy(), np.array(group.answers)))
        return colour_report(answered)


def summary(row: dict[str, Any]) -> str:
    """A row on one line."""
    shares = (f"{d} {row[d]['images']:.4f} / {row[d]['products']:.4f}" for d in ("arg_max", "one_to_one"))
    return f"{row['feed']:20} {row['matcher']:32} seed {row['seed']} {row['asked']:24} {'  '.join(shares)}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: photos / whole products right, means over the seeds."""
    lines = ["| feed | products | matcher | arg-max | one-to-one |", "| --- | --- | --- | --- | --- |"]
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["feed"], row["asked"], row["matcher"]), []).append(row)
    for (feed, asked, matcher), runs in sorted(cells.items(), key=lambda cell: cell[0][:2]):
        shares = [
            " / ".join(f"{np.mean([run[decode][share] for run in runs]):.3f}" for share in ("images", "products"))
            for decode in ("arg_max", "one_to_one")
        ]
        lines.append(f"| {feed} | {asked} | {matcher} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines) + "\n"
