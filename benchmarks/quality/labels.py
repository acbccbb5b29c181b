"""Do mistakes become near misses? Every label representation on the same encoders, budget and seeds.

Encoders are trained once per feed (contrastively, frozen since), then a head per representation and seed on cached
embeddings; one head answers with both modalities, the image alone and the title alone.  Near is by name: MiniLM where
it is installed, else the feed's own text encoder.  `labels.json` holds every run, `labels.md` mean and spread,
`labels.png` the trade between near answers and right ones.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import results
from catalogue.feed import detect_preset, open_feed
from catalogue.sample import generate_sample
from models.category_head import CategoryHead, CategoryHeadConfig
from training.categorize import CategorizeSettings, name_neighbours, train_encoders
from training.category_tasks import CategoryEvaluator, CategoryObjective, HeadTask
from training.embeddings import embed_examples
from training.labels import LabelScheme
from training.metrics import CategoryMetrics, taxonomy_table
from training.sentence_encoder import packaged_sentence_encoder
from training.train import fit, make_accelerator

SEEDS = (0, 1, 2)
RUNS = results.ROOT / "runs" / "benchmarks" / "labels"
DATA = Path(os.environ.get("SHELFWISE_DATA", results.ROOT.parent / "shared" / "data"))
BASELINE = "one_hot"
# Representation and λ; 0 is focal loss alone, the baseline.
REGIMES: dict[str, tuple[LabelScheme, float]] = {
    BASELINE: (LabelScheme("one_hot"), 0.0),
    "uniform": (LabelScheme("uniform"), 1.0),
    "neighbour_uniform": (LabelScheme("neighbour_uniform"), 1.0),
    "neighbour_semantic, similarity": (LabelScheme("neighbour_semantic", "similarity"), 1.0),
    "neighbour_semantic, distance": (LabelScheme("neighbour_semantic", "distance"), 1.0),
    "neighbour_semantic, share": (LabelScheme("neighbour_semantic", "share"), 1.0),
    "curriculum": (LabelScheme("curriculum", "similarity", epsilon=0.5), 1.0),
}
COLUMNS = ("top_1", "top_5", "near_in_top_5", "near_or_label_in_top_5", "all_top_5_near_or_label", "mistake_height")


def main(quick: bool, output: Path) -> None:
    """Measure every regime and write JSON, table and plot to `output`; quick: one seed."""
    seeds = SEEDS[:1] if quick else SEEDS
    rows = [row for feed in feeds() for row in measure(feed, seeds)]
    results.write("labels", rows, ("torch", "transformers", "numpy"), output)
    (output / "labels.md").write_text(table(rows), encoding="utf-8")
    plot(rows, output / "labels.png")
    print(table(rows))


def feeds() -> Iterator[Path]:
    """The fashion feed where it is at hand, else a drawn catalogue."""
    fashion = DATA / "fashion-60x80.parquet"
    if fashion.is_file():
        yield fashion
        return
    path = RUNS / "sample.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate_sample(path)
    yield path


def measure(path: Path, seeds: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A row per regime, seed and modality on the test split of a feed."""
    accelerator = make_accelerator()
    settings = CategorizeSettings().with_seed()
    feed = open_feed(path, detect_preset(path))
    encoders, material = train_encoders(feed, settings, RUNS / path.stem, accelerator)
    image_encoder, text_encoder = encoders.image_encoder, encoders.text_encoder
    examples = material.examples
    train, validation, test = (
        embed_examples(image_encoder, text_encoder, examples, examples.rows(split))
        for split in ("train", "val", "test")
    )
    neighbours = name_neighbours(material, text_encoder, packaged_sentence_encoder())
    tree = taxonomy_table(material.taxonomy.paths)
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(neighbours.ids[:, 1:], tree))
    config = CategoryHeadConfig(embed_dim=settings.embed_dim, num_classes=len(material.taxonomy))
    for regime, (scheme, kl_weight) in REGIMES.items():
        for seed in seeds:
            torch.manual_seed(seed)
            head = CategoryHead(config)
            objective = CategoryObjective(neighbours, scheme, gamma=settings.gamma, kl_weight=kl_weight)
            task = HeadTask(head, train, validation, objective, evaluator, settings.dropout)
            with tempfile.TemporaryDirectory() as folder:
                fit(task, settings.head.model_copy(update={"seed": seed}), Path(folder), accelerator)
            for modality, report in evaluator.reports(head, test).items():
                yield {"feed": path.stem, "regime": regime, "seed": seed, "modality": modality, **asdict(report)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds of each regime, feed and modality."""
    groups = grouped(rows)
    lines = [
        "Frozen encoders, a head per regime; mean ± standard deviation over the seeds, test split.",
        "",
        "| feed | input | representation | " + " | ".join(COLUMNS) + " | near ÷ baseline |",
        "| --- " * (len(COLUMNS) + 4) + "|",
    ]
    for (feed, modality, regime), runs in groups.items():
        near = mean(run["near_in_top_5"] for run in runs)
        baseline = mean(run["near_in_top_5"] for run in groups[feed, modality, BASELINE])
        cells = [spread([run[column] for run in runs]) for column in COLUMNS]
        lines.append(f"| {feed} | {modality} | {regime} | " + " | ".join(cells) + f" | {near / baseline:.2f} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Near answers against right ones, a panel per modality."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(rows)
    panels = list(dict.fromkeys((feed, modality) for feed, modality, _ in groups))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for (feed, modality, regime), runs in groups.items():
            if (feed, modality) == panel:
                right = [run["top_1"] for run in runs]
                near = [run["near_in_top_5"] for run in runs]
                axis.plot(right, near, "o", label=regime, alpha=0.7)
        axis.set_title(f"{panel[0]}: {panel[1]}")
        axis.set_xlabel("top-1 accuracy")
        axis.set_ylabel("of the top 5 among the 20 nearest labels")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The runs of each feed, modality and regime."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["feed"], row["modality"])):
        groups[row["feed"], row["modality"], row["regime"]].append(row)
    return dict(groups)


def spread(values: list[float]) -> str:
    """ "mean ± standard deviation"; a single value stands alone."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
