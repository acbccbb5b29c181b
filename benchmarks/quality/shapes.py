"""Four kinds of shapes: does it help to learn classes by the features that they share?

Filled or outlined, round or angular: four classes, drawn at random place, size, proportions, contrast and noise. One
network, the same start, the same images in the same order; what differs is the head: a four-way soft-max, the right
two-bit code (filled, round), or a wrong code that calls a filled round shape and an outlined angular one alike. Two
bits that tell four classes apart hold at least one true feature, so a wrong code holds one; both such codes are run.
Two conditions: a small set of labelled images seen again and again, and a fresh image every time.
After the four-class shapes experiment of the published work on semantic labels for product categorization.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.results import RESULTS, write
from training.feature_codes import FeatureCodes, codes_from_table
from training.losses import code_loss

SIZE = 16
# Classes in order: filled round, filled angular, outlined round, outlined angular.
RIGHT = codes_from_table([[1, 1], [1, 0], [0, 1], [0, 0]], ["filled", "round"])
WRONG_ROUND = codes_from_table([[1, 1], [0, 0], [0, 1], [1, 0]], ["filled and round, or neither", "round"])
WRONG_FILLED = codes_from_table([[1, 1], [0, 1], [0, 0], [1, 0]], ["filled and round, or neither", "filled"])
SOFT_MAX = "soft-max"
RIGHT_CODES = "right codes"
HEADS: dict[str, FeatureCodes | None] = {
    SOFT_MAX: None,
    RIGHT_CODES: RIGHT,
    "wrong codes, round true": WRONG_ROUND,
    "wrong codes, filled true": WRONG_FILLED,
}


@dataclass(frozen=True)
class Setting:
    """How the networks learn; `images` = 0 draws a fresh image every time."""

    images: int = 300
    seeds: int = 10
    steps: int = 400
    batch: int = 32
    every: int = 10
    test_images: int = 1200
    learning_rate: float = 2e-3
    noise: float = 0.1


def draw(classes: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Images [B, 1, SIZE, SIZE] float32 of the classes [B]: one shape each, light on dark or dark on light."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(classes), 1, 1, generator=generator)

    axis = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    stretch, radius = between(0.85, 1 / 0.85).sqrt(), between(0.45, 0.65)
    x, y = (x - between(-0.3, 0.3)) * stretch, (y - between(-0.3, 0.3)) / stretch
    is_filled, is_round = RIGHT.codes[classes].bool().T.unsqueeze(2).unsqueeze(3)
    ellipse = (x.square() + y.square()).sqrt() - radius
    rectangle = torch.maximum(x.abs(), y.abs()) - radius * math.sqrt(math.pi) / 2  # of the same area
    outside = torch.where(is_round, ellipse, rectangle)
    outline = outside.abs() - between(0.05, 0.09)
    shape = torch.sigmoid(-30 * torch.where(is_filled, outside, outline))
    contrast = between(0.5, 1.0) * torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    images = shape * contrast + noise * torch.randn(len(classes), SIZE, SIZE, generator=generator)
    return images.unsqueeze(1)


def training_images(setting: Setting, seed: int) -> tuple[Tensor, Tensor]:
    """Images [steps·batch, 1, SIZE, SIZE] and classes in the order in which every head sees them."""
    generator = torch.Generator().manual_seed(seed)
    seen = setting.steps * setting.batch
    classes = torch.randint(0, 4, (setting.images or seen,), generator=generator)
    images = torch.cat([draw(part, setting.noise, generator) for part in classes.split(1000)])
    if not setting.images:
        return images, classes
    passes = [torch.randperm(setting.images, generator=generator) for _ in range(math.ceil(seen / setting.images))]
    order = torch.cat(passes)[:seen]
    return images[order], classes[order]


def network(outputs: int, seed: int) -> nn.Sequential:
    """A small convolutional network; the layers below the head start the same for every head."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (SIZE // 4) ** 2, 64),
        nn.ReLU(),
    )
    return nn.Sequential(trunk, nn.Linear(64, outputs))


def learn(setting: Setting, seed: int) -> dict[str, list[float]]:
    """Test accuracy of each head after every `setting.every` steps."""
    images, classes = training_images(setting, seed)
    test_classes = torch.arange(setting.test_images) % 4
    test_images = draw(test_classes, setting.noise, torch.Generator().manual_seed(2**20 + seed))
    curves: dict[str, list[float]] = {}
    for name, codes in HEADS.items():
        model = network(4 if codes is None else codes.codes.shape[1], seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
        curves[name] = []
        for step in range(1, setting.steps + 1):
            batch = slice((step - 1) * setting.batch, step * setting.batch)
            logits, wanted = model(images[batch]), classes[batch]
            loss = F.cross_entropy(logits, wanted) if codes is None else code_loss(logits, wanted, codes.codes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % setting.every == 0:
                with torch.no_grad():
                    logits = model(test_images)
                scores = logits if codes is None else codes.class_scores(logits)
                curves[name].append((scores.argmax(dim=1) == test_classes).double().mean().item())
    return curves


def summary(condition: str, setting: Setting, curves: dict[str, npt.NDArray[np.float64]]) -> list[dict[str, Any]]:
    """What the curves [seeds, evaluations] of each head say, a row a head.

    The final accuracy is the mean of the last tenth of the evaluations. Steps to reach the soft-max's final accuracy
    are read off the mean curve over the seeds, and given as a share of those that the soft-max itself takes.
    """
    last = max(1, setting.steps // setting.every // 10)
    goal = float(curves[SOFT_MAX][:, -last:].mean())

    def steps_to_goal(name: str) -> int | None:
        reached = np.flatnonzero(curves[name].mean(axis=0) >= goal)
        return int((reached[0] + 1) * setting.every) if reached.size else None

    own = steps_to_goal(SOFT_MAX)
    rows = []
    for name, curve in curves.items():
        final, steps = curve[:, -last:].mean(axis=1), steps_to_goal(name)
        rows.append(
            {
                "condition": condition,
                "head": name,
                "final_accuracy": float(final.mean()),
                "standard_deviation_over_seeds": float(final.std(ddof=1)),
                "seeds_above_soft_max": int((final > curves[SOFT_MAX][:, -last:].mean(axis=1)).sum()),
                "steps_to_soft_max_final_accuracy": steps,
                "share_of_soft_max_steps": None if steps is None or own is None else steps / own,
                "setting": asdict(setting),
                "mean_curve": curve.mean(axis=0).round(4).tolist(),
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean learning curves, a panel a condition, as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    figure, panels = plt.subplots(1, len(conditions), figsize=(9, 3.4), sharey=True)
    for panel, condition in zip(panels, conditions, strict=True):
        heads = [row for row in rows if row["condition"] == condition]
        setting = heads[0]["setting"]
        for row, colour in zip(heads, ("black", "C0", "C3", "C1"), strict=True):
            steps = setting["every"] * np.arange(1, len(row["mean_curve"]) + 1)
            panel.plot(steps, row["mean_curve"], colour, label=f"{row['head']}: {row['final_accuracy']:.3f}")
        panel.axhline(heads[0]["final_accuracy"], color="black", linewidth=0.6, linestyle=":")
        panel.set_title(f"{condition}, mean of {setting['seeds']} seeds", fontsize=9)
        panel.set_xlabel("steps")
        panel.legend(fontsize=7, title="final accuracy", title_fontsize=7)
    panels[0].set_ylabel("test accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(quick: bool = False, output: Path = RESULTS) -> None:
    """Runs both conditions on one core and writes shapes.json and shapes.png.

    Args:
        quick: two seeds instead of ten, half as many steps.
        output: folder of the files.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    few = Setting(seeds=2, steps=200) if quick else Setting()
    rows: list[dict[str, Any]] = []
    for condition, setting in ((f"{few.images} images", few), ("fresh images", replace(few, images=0))):
        seeds = [learn(setting, seed) for seed in range(setting.seeds)]
        rows += summary(condition, setting, {head: np.array([curves[head] for curves in seeds]) for head in HEADS})
    torch.set_num_threads(threads)
    write("shapes", rows, ("torch", "numpy"), output)
    plot(rows, output / "shapes.png")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
