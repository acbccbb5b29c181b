"""Is one way to train the colour matcher better than another? Five folds of groups, with intervals.

The test split of one hash is a few hundred products: a difference of two points is within its noise.  Here the groups
of a feed are dealt out in five folds, each the test of one training, so that every product is tested once, by a matcher
that never saw its title in any colour.  Ways to train are compared fold by fold: what folds have in common drops out of
the difference.  Intervals are Student's, of 95 %, over the five folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.stats import t

from benchmarks import results
from benchmarks.markdown import Rows, markdown
from benchmarks.quality.colours import PLAIN, RUNS, STAGES, Row, drawn_feed, feeds, kept
from catalogue.feed import detect_preset, open_feed
from catalogue.product import Split, hash_share
from models.efficientnet_lite import imagenet_weights
from training.colour_examples import ColourExamples
from training.match_colours import ColourMatcherBundle, ColourRecipe, ColourSettings
from training.recipe import train
from training.train import make_accelerator

FOLDS = 5
CONFIDENCE = 0.95
DEFAULT = "default"


class FoldRecipe(ColourRecipe):
    """The recipe with one fold of the groups as its test split, half of the next one to choose with."""

    fold: ClassVar[int]

    def make_examples(self) -> ColourExamples:
        """The photos, in the splits of the fold."""
        examples = super().make_examples()
        variants = (
            variant and replace(variant, split=fold_split(variant.group, self.fold)) for variant in examples.variants
        )
        return replace(examples, variants=tuple(variants))


def fold_split(group: str, fold: int) -> Split:
    """The split of a group where `fold` of `FOLDS` is tested: a function of the group's name."""
    half = int(2 * FOLDS * hash_share(f"fold {group}"))
    if half // 2 == fold:
        return "test"
    return "val" if half == (2 * fold + 2) % (2 * FOLDS) else "train"


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON and table to `output`; quick: a small drawn feed, one pass a stage."""
    path = drawn_feed(200) if quick else feeds()[0]
    rows: Rows = []
    for name, settings in ways().items():
        given = settings.overridden({f"{stage}.epochs": 1 for stage in STAGES}) if quick else settings
        for fold in range(FOLDS):
            for row in fold_rows(path, name, given, fold):
                print(row, flush=True)
                rows.append(row)
            results.write("colour-folds", rows, ("torch", "transformers", "numpy", "scipy"), output)
    (output / "colour-folds.md").write_text(folds_table(rows) + "\n", encoding="utf-8")


def ways() -> dict[str, ColourSettings]:
    """Ways to train, the recipe's default first."""
    found = {DEFAULT: ColourSettings(), "loss over the labels alone": ColourSettings(label_share=0.0)}
    if imagenet_weights() is not None:
        found["EfficientNet-Lite0"] = ColourSettings(image_tower="imagenet")
    return found


def fold_rows(path: Path, name: str, settings: ColourSettings, fold: int) -> list[Row]:
    """The figures of one training on one fold, measured now unless they were before."""
    folder = RUNS / "folds" / path.stem / name.replace(" ", "-")

    def make() -> Iterator[Row]:
        recipe = type(f"Fold{fold}", (FoldRecipe,), {"fold": fold})
        feed = open_feed(path, detect_preset(path))
        bundle: ColourMatcherBundle = train(
            recipe, feed, settings, folder / str(fold), make_accelerator(), stores=RUNS / "store"
        )
        metrics = bundle.config.metrics
        for asked in PLAIN:
            if asked in metrics[metrics["served"]]:
                yield {"way": name, "fold": fold, "asked": asked, **metrics[metrics["served"]][asked]}

    return kept(folder, name, fold, settings.model_dump(mode="json"), make)


def folds_table(rows: Rows) -> str:
    """Markdown: one-to-one photos and products right, mean over the folds, and the difference from the default."""
    figures: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        for share in ("images", "products"):
            figures.setdefault((row["asked"], share, row["way"]), {})[row["fold"]] = row["one_to_one"][share]
    lines = []
    for (asked, share, way), folds in sorted(figures.items(), key=lambda entry: entry[0][:2]):
        default = figures[asked, share, DEFAULT]
        common = sorted(folds.keys() & default.keys())
        changes = [folds[fold] - default[fold] for fold in common]
        lines.append((asked, share, way, interval(list(folds.values())), "" if way == DEFAULT else interval(changes)))
    return (
        f"{markdown(('test products', 'right', 'trained', 'one-to-one', 'less the default'), lines)}\n\n"
        f"Mean ± half of a {CONFIDENCE:.0%} interval over {FOLDS} folds of groups."
    )


def interval(figures: list[float]) -> str:
    """Mean ± half of Student's interval; of one figure the mean alone."""
    mean = float(np.mean(figures))
    if len(figures) < 2:
        return f"{mean:.3f}"
    error = float(np.std(figures, ddof=1)) / len(figures) ** 0.5
    return f"{mean:.3f} ± {float(t.ppf((1 + CONFIDENCE) / 2, len(figures) - 1)) * error:.3f}"
