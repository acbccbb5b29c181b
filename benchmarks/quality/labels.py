"""Do mistakes become near misses? Every label representation on the same encoders, budget and seeds.

The published protocol: encoders are trained once and frozen, then a head per representation, input and seed learns on
their cached embeddings.  Encoders are trained contrastively; where a feed has no titles, together with a head and the
baseline's loss.  Near is by category name (MiniLM's embeddings where they are installed).  `labels.json` holds every
run, `labels.md` mean and spread, `labels.png` the trade between near answers and right ones.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from benchmarks import results
from benchmarks.markdown import markdown
from catalogue.feed import detect_preset, open_feed
from catalogue.product import SPLITS
from catalogue.sample import generate_sample
from catalogue.store import open_store
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from training.categorize import CategorizeRecipe, CategorizeSettings, feature_codes
from training.category_tasks import CategoryObjective, FineTuneTask, HeadTask
from training.embeddings import embed_examples
from training.labels import LabelScheme
from training.recipe import run_stages
from training.settings import TrainConfig
from training.train import fit, make_accelerator

SEEDS = (0, 1, 2)
RUNS = results.ROOT / "runs" / "benchmarks" / "labels"
DATA = Path(os.environ.get("SHELFWISE_DATA", results.ROOT.parent / "shared" / "data"))
# Pixels the images of each real feed are brought to.
FEEDS = {"fashion-60x80.parquet": (80, 64), "grocery.parquet": (64, 64)}
COLUMNS = ("top_1", "top_5", "near_in_top_5", "near_or_label_in_top_5", "all_top_5_near_or_label", "mistake_height")
# For an encoder without titles to start from: of some thousand photographs, not tens of thousands, so more passes.
WITHOUT_TITLES = TrainConfig(epochs=20, batch_size=32, learning_rate=1e-3)
# Of a head at least: on a small feed, the recipe's eight epochs would leave every head half trained.
HEAD_STEPS = 500
INPUTS = ("image + title", "image")  # the ways to ask that heads are trained and measured in, each by itself


@dataclass(frozen=True)
class Regime:
    """A label representation with its weight λ beside the focal loss, and where binary codes come from."""

    scheme: LabelScheme
    kl_weight: float = 1.0
    codes: Literal["names", "taxonomy"] = "names"


BASELINE = "focal alone"
REGIMES = {
    BASELINE: Regime(LabelScheme("one_hot"), kl_weight=0.0),
    "one_hot": Regime(LabelScheme("one_hot")),
    "uniform": Regime(LabelScheme("uniform")),
    "neighbour_uniform": Regime(LabelScheme("neighbour_uniform")),
    "neighbour_semantic, similarity": Regime(LabelScheme("neighbour_semantic", "similarity")),
    "neighbour_semantic, similarity, λ = 2": Regime(LabelScheme("neighbour_semantic", "similarity"), kl_weight=2.0),
    "neighbour_semantic, distance": Regime(LabelScheme("neighbour_semantic", "distance")),
    "neighbour_semantic, share": Regime(LabelScheme("neighbour_semantic", "share")),
    "curriculum": Regime(LabelScheme("curriculum")),
    "binary_codes, names": Regime(LabelScheme("binary_codes")),
    "binary_codes, taxonomy": Regime(LabelScheme("binary_codes"), codes="taxonomy"),
}


def main(quick: bool, output: Path) -> None:
    """Measure every regime and write JSON, table and plot to `output`; quick: a small drawn catalogue, one pass."""
    rows = []
    for path in [drawn_catalogue(800)] if quick else feeds():
        for row in FeedComparison(path).rows(SEEDS[:1] if quick else SEEDS, quick=quick):
            print(summary(row), flush=True)
            rows.append(row)
    results.write("labels", rows, ("torch", "transformers", "numpy"), output)
    (output / "labels.md").write_text(f"{labels_table(rows)}\n", encoding="utf-8")
    plot(rows, output / "labels.png")
    print(labels_table(rows))


def feeds() -> list[Path]:
    """The real feeds that are at hand, else a drawn catalogue."""
    return [DATA / name for name in FEEDS if (DATA / name).is_file()] or [drawn_catalogue()]


def drawn_catalogue(products: int = 4000) -> Path:
    """The sample catalogue of so many products, drawn on first use."""
    path = RUNS / f"sample-{products}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate_sample(path, products)
    return path


class FeedComparison:
    """All regimes on one feed, measured on its test split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accelerator = make_accelerator()
        height, width = FEEDS.get(path.name, (80, 64))
        self.settings = CategorizeSettings(image_tower="scratch", image_height=height, image_width=width)
        store = open_store(open_feed(path, detect_preset(path)), RUNS / "store", height, width)
        store.keep_validation()
        self.recipe = CategorizeRecipe(store, self.settings, self.accelerator)
        if self.recipe.has_pairs:
            run_stages(self.recipe, RUNS / path.stem, last="contrastive")
        self.recipe.prepare_labels()  # once: the representations are all of the same names
        self.encoders, self.evaluator = self.recipe.encoders, self.recipe.evaluator

    def rows(self, seeds: tuple[int, ...], *, quick: bool) -> Iterator[dict[str, Any]]:
        """A row per seed, input and regime; quick: of heads trained for one epoch."""
        if not self.recipe.has_pairs:
            self.train_image_encoder()
        examples = self.recipe.examples
        train, validation, test = (
            embed_examples(self.encoders.image_encoder, self.encoders.text_encoder, examples, examples.rows(split))
            for split in SPLITS
        )
        steps = -(-len(train) // self.settings.head.batch_size)
        epochs = 1 if quick else max(self.settings.head.epochs, -(-HEAD_STEPS // steps))
        for seed in seeds:
            budget = self.settings.head.model_copy(update={"epochs": epochs})
            for given in INPUTS if self.recipe.has_pairs else INPUTS[1:]:
                for name, regime in REGIMES.items():
                    head, objective = self.head_and_objective(regime, seed)
                    task = HeadTask(head, train, validation, objective, self.evaluator, [given])
                    with tempfile.TemporaryDirectory() as folder:  # no checkpoint: the next regime has the same name
                        fit(task, budget, Path(folder), self.accelerator, seed=seed)
                    report = self.evaluator.reports(head, test)[given]
                    yield {"feed": self.path.stem, "input": given, "regime": name, "seed": seed, **asdict(report)}

    def train_image_encoder(self) -> None:
        """Trains the image encoder with a head of its own and the baseline's loss."""
        head, objective = self.head_and_objective(REGIMES[BASELINE], self.settings.seed)
        model = Categorizer(self.encoders.image_encoder, self.encoders.text_encoder, head)
        task = FineTuneTask(model, self.recipe.examples, objective, self.evaluator, INPUTS[1:])
        fit(task, WITHOUT_TITLES, RUNS / self.path.stem, self.accelerator)

    def head_and_objective(self, regime: Regime, seed: int) -> tuple[CategoryHead, CategoryObjective]:
        """A fresh head, the same for every regime with a seed, and what it is trained on."""
        codes = None
        if regime.scheme.has_codes:
            codes = feature_codes(self.recipe.taxonomy.paths, self.recipe.name_encoder(), regime.codes)
        config = CategoryHeadConfig(
            embed_dim=self.settings.embed_dim,
            num_classes=len(self.recipe.taxonomy.paths),
            num_features=None if codes is None else len(codes.features),
        )
        torch.manual_seed(seed)
        head = CategoryHead(config, None if codes is None else codes.codes)
        objective = CategoryObjective(
            self.recipe.table, regime.scheme, gamma=self.settings.gamma, kl_weight=regime.kl_weight, codes=codes
        )
        return head, objective


def summary(row: dict[str, Any]) -> str:
    """A run on a line."""
    figures = "  ".join(f"{column} {row[column]:.3f}" for column in COLUMNS)
    return f"{row['feed']}  {row['input']}  {row['regime']}  seed {row['seed']}: {figures}"


def labels_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds of each regime, feed and input."""
    groups = grouped(rows)
    columns = ("feed", "input", "representation", "top-1", "top-5", "near", "÷", "all", "height", "ECE")
    lines = []
    for (feed, given, regime), runs in groups.items():
        figures = {column: spread([run[column] for run in runs]) for column in (*COLUMNS, "calibration_error")}
        baseline = mean(run["near_in_top_5"] for run in groups[feed, given, BASELINE])
        ratio = mean(run["near_in_top_5"] for run in runs) / baseline
        counted = mean(run["near_or_label_in_top_5"] for run in runs)
        lines.append(
            (
                *(feed, given, regime, figures["top_1"], figures["top_5"]),
                *(f"{figures['near_in_top_5']} ({counted:.2f})", f"{ratio:.2f}", figures["all_top_5_near_or_label"]),
                *(figures["mistake_height"], figures["calibration_error"]),
            )
        )
    return (
        f"{markdown(columns, lines)}\n\n"
        "Mean ± standard deviation over the seeds, test split. near: of the first five answers, how many are among\n"
        "the 20 nearest labels of the true one (in brackets: with the label itself counted); ÷: against focal alone;\n"
        "all: share of items whose five are all there, the label counted; height: mean taxonomy distance of the wrong\n"
        "first answers; ECE: expected calibration error."
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Near answers against right ones, a panel per feed and input; a cross is the spread over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(rows)
    panels = list(dict.fromkeys((feed, given) for feed, given, _ in groups))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.6), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for colour, (regime, marker) in enumerate(zip(REGIMES, "sov^<8>DPXp", strict=True)):
            runs = groups[*panel, regime]
            right, near = [run["top_1"] for run in runs], [run["near_in_top_5"] for run in runs]
            axis.errorbar(
                mean(right),
                mean(near),
                xerr=deviation(right),
                yerr=deviation(near),
                fmt=marker,
                label=regime,
                color=f"C{colour}",
            )
        axis.set_title(": ".join(panel))
        axis.set_xlabel("top-1 accuracy")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("of the first five, among the 20 nearest labels")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=80)


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The runs of each feed, input and regime."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["feed"], row["input"] != "image + title")):
        groups[row["feed"], row["input"], row["regime"]].append(row)
    return dict(groups)


def spread(values: list[float]) -> str:
    """ "mean ± standard deviation"; a single value stands alone."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def deviation(values: list[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0
