"""Does looking at all photos and labels of a product help? The matcher beside a classifier, and without its parts.

Rows over the test products of a feed. Alone: a plain colour classifier (the matcher's image tower and a linear layer,
trained for as many passes over the photos as the matcher's towers and joint stage together, at the same rates), used
for each photo by itself. The recipe: what `shelfwise train match-colours` gives. Together: the mean of the two. Parts:
heads of one budget on the same frozen contrastive towers, the whole one and ones without a part; "labels as written"
skips their cleaning in training and in the answer. And how far the labels can be trusted (colour_limit.py). Feeds: the
real one where it is at hand, and the drawn one in Chinese and English.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import results
from benchmarks.quality.colour_limit import doubted_labels, repeated_photos
from benchmarks.quality.colour_table import Row, matching_table, summary
from catalogue.atomic import atomic_file
from catalogue.colour_labels import clean_labels
from catalogue.colour_sample import generate_colour_sample
from catalogue.feed import Feed, detect_preset, open_feed
from catalogue.store import open_store
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, small_colour_tower
from models.matcher import MatcherConfig
from training.colour_examples import Clean, ColourPairs, ColourProducts
from training.colour_tasks import ColourEvaluator, ColourFrozenTask, FrozenProducts, embed_photos
from training.match_colours import COLOUR_MATCHER, ColourRecipe, ColourSettings, frozen_products, split_evaluators
from training.recipe import STORE_FOLDER, run_stages, train
from training.settings import TrainConfig
from training.train import Batch, Losses, Task, fit, make_accelerator

RUNS = results.ROOT / "runs" / "benchmarks" / "colours"
DATA = Path(os.environ.get("SHELFWISE_DATA", results.ROOT.parent / "shared" / "data"))
REAL_FEED = "fashion-60x80.parquet"
SEEDS = (0, 1, 2)
HEAD = TrainConfig(epochs=2, batch_size=64, learning_rate=5e-4)
WHOLE = MatcherConfig()
PARTS: dict[str, MatcherConfig] = {
    "three units": WHOLE,
    "two units": WHOLE.model_copy(update={"num_units": 2}),
    "one unit": WHOLE.model_copy(update={"num_units": 1}),
    "without cross-attention": WHOLE.model_copy(update={"cross_attention": False}),
    "dot product instead of f_edge": WHOLE.model_copy(update={"edge": "dot_product"}),
}
ALONE = "plain classifier"
TOGETHER = "recipe and classifier together"
LIMIT = "labels"
LABELS_AS_WRITTEN = "three units, labels as written"
STAGES = ("contrastive", "joint", "frozen")
PLAIN = ("real", "harder", "harder, more labels")  # what a classifier can be asked: it knows the feed's colours alone


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON and table to `output`; quick: a small drawn feed, one pass a stage, one seed."""
    settings = ColourSettings()
    if quick:
        stages = {stage: getattr(settings, stage).model_copy(update={"epochs": 1}) for stage in STAGES}
        settings = settings.model_copy(update=stages)
    paths = [drawn_feed(200)] if quick else feeds()
    whole = (row for path in paths for row in measure(path, settings))
    rows: list[Row] = []
    for row in chain(whole, measure_parts(paths[0], settings, SEEDS[:1] if quick else SEEDS)):
        print(summary(row) if "one_to_one" in row else row, flush=True)
        rows.append(row)
        results.write("colours", rows, ("torch", "transformers", "numpy", "scipy"), output)
        (output / "colours.md").write_text(matching_table(rows) + "\n", encoding="utf-8")


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


def measure(path: Path, settings: ColourSettings) -> Iterator[Row]:
    """The recipe, the classifier and the limit of the labels on a feed."""
    feed, folder, accelerator = open_feed(path, detect_preset(path)), RUNS / path.stem, make_accelerator()
    recipe = trained_towers(feed, settings, folder, accelerator)
    classifier = ColourClassifierTask(recipe)
    trained = partial(train_classifier, classifier, folder)
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "recipe": partial(recipe_rows, feed, settings, folder, accelerator),
        ALONE: partial(classifier_rows, trained, recipe),
        "cosine of the towers": partial(cosine_rows, recipe),
    }
    makers[TOGETHER] = partial(together_rows, trained, folder / "bundle", recipe)
    if path.name == REAL_FEED:
        makers[LIMIT] = partial(limit_rows, trained, folder / "bundle", recipe)
    for name, make in makers.items():
        yield from kept(folder, name, settings.seed, settings.model_dump(mode="json"), make)


def measure_parts(path: Path, settings: ColourSettings, seeds: Sequence[int]) -> Iterator[Row]:
    """Heads with and without a part on the towers that `measure` trained."""
    feed, folder, accelerator = open_feed(path, detect_preset(path)), RUNS / path.stem, make_accelerator()
    parts = Parts(trained_towers(feed, settings, folder, accelerator))
    recipe = settings.model_dump(mode="json") | {"head": HEAD.model_dump(mode="json")}
    for seed in seeds:
        for name, config in [*PARTS.items(), (LABELS_AS_WRITTEN, WHOLE)]:
            clean = list if name == LABELS_AS_WRITTEN else clean_labels
            yield from kept(folder, name, seed, recipe, partial(parts.measured, config, clean, seed))


def kept(folder: Path, name: str, seed: int, recipe: Row, make: Callable[[], Iterator[Row]]) -> list[Row]:
    """Rows as they were measured before with the same settings, else measured now."""
    file = folder / "measured" / f"{re.sub('[^a-z_]+', '-', name)}-{seed}.json"
    if file.is_file() and (found := json.loads(file.read_text()))["recipe"] == recipe:
        return list(found["rows"])
    measured = [{"feed": folder.name, "matcher": name, "seed": seed, **row} for row in make()]
    with atomic_file(file) as aside:
        aside.write_text(json.dumps({"recipe": recipe, "rows": measured}))
    return measured


def classifier_rows(trained: Callable[[], ColourClassifierTask], recipe: ColourRecipe) -> Iterator[Row]:
    """The plain classifier on what it can be asked."""
    classifier = trained()
    for kind, evaluator in evaluators_of(recipe, clean_labels).items():
        if kind in PLAIN:
            yield {"asked": kind, **asdict(evaluator.measured(classifier.answers(evaluator)))}


def cosine_rows(recipe: ColourRecipe) -> Iterator[Row]:
    """The contrastive towers alone."""
    for kind, evaluator in evaluators_of(recipe, clean_labels).items():
        yield {"asked": kind, **asdict(evaluator.cosine_report(recipe.towers))}


def together_rows(trained: Callable[[], ColourClassifierTask], bundle: Path, recipe: ColourRecipe) -> Iterator[Row]:
    """The geometric mean of what matcher and classifier say: what two makes know and one does not."""
    classifier, matcher = trained(), COLOUR_MATCHER.load(bundle).model.eval()
    for kind, evaluator in evaluators_of(recipe, clean_labels).items():
        if kind in PLAIN:
            both = zip(
                evaluator.answers(matcher.head, *evaluator.embed(matcher)), classifier.answers(evaluator), strict=True
            )
            products = [np.sqrt(matched * classified) for matched, classified in both]
            yield {"asked": kind, **asdict(evaluator.measured([one / one.sum(1, keepdims=True) for one in products]))}


def recipe_rows(feed: Feed, settings: ColourSettings, folder: Path, accelerator: Accelerator) -> Iterator[Row]:
    """Both stages of the recipe, and which of them it serves; the bundle stays in `folder`."""
    bundle = train(ColourRecipe, feed, settings, folder, accelerator)
    COLOUR_MATCHER.save(folder / "bundle", bundle)
    metrics = bundle.config.metrics
    for stage in ("joint", "frozen"):
        for kind, report in metrics.get(stage, {}).items():
            yield {"stage": stage, "served": stage == metrics["served"], "asked": kind, **report}


def limit_rows(trained: Callable[[], ColourClassifierTask], bundle: Path, recipe: ColourRecipe) -> Iterator[Row]:
    """How far the labels of the test products can be trusted."""
    evaluator = evaluators_of(recipe, clean_labels)["real"]
    matcher = COLOUR_MATCHER.load(bundle).model
    judges = [trained().answers(evaluator), evaluator.answers(matcher.head, *evaluator.embed(matcher))]
    yield {
        "asked": "real",
        "doubted": asdict(doubted_labels(evaluator.groups, judges)),
        "repeated": asdict(repeated_photos(recipe.examples, named=False)),
        "repeated_named": asdict(repeated_photos(recipe.examples, named=True)),
    }


class Parts:
    """Heads of one budget on the same contrastive towers; photos are embedded once, when the first head needs them."""

    def __init__(self, recipe: ColourRecipe) -> None:
        self.recipe = recipe

    def measured(self, config: MatcherConfig, clean: Clean, seed: int) -> Iterator[Row]:
        """A head of a configuration, trained and measured."""
        torch.manual_seed(seed)
        matcher = ColourMatcher(self.recipe.towers.image_encoder, self.recipe.towers.text_encoder, ColourHead(config))
        products = self._products(clean)
        embedded = FrozenProducts(products, self._training.views, self._training.place)
        task = ColourFrozenTask(matcher, embedded, self.recipe.validation, self.recipe.settings.label_share)
        with tempfile.TemporaryDirectory() as temporary:  # no checkpoint: the next part has the same name
            fit(task, HEAD, Path(temporary), self.recipe.accelerator, seed=seed)
        for kind, evaluator in evaluators_of(self.recipe, clean).items():
            yield {"asked": kind, **asdict(evaluator.head_report(matcher.head.eval(), *evaluator.embed(matcher)))}

    def _products(self, clean: Clean) -> ColourProducts:
        recipe = self.recipe
        return ColourProducts(recipe.examples, recipe.tokenizer, recipe.settings.noise, clean, recipe.settings.mix)

    @cached_property
    def _training(self) -> FrozenProducts:
        return frozen_products(self.recipe.towers.image_encoder, self._products(clean_labels), views=2)


def trained_towers(feed: Feed, settings: ColourSettings, folder: Path, accelerator: Accelerator) -> ColourRecipe:
    """The recipe on a feed, its towers trained by contrast."""
    recipe = ColourRecipe(
        open_store(feed, folder.parent / STORE_FOLDER, *settings.image_size),
        settings,
        accelerator,
    )
    run_stages(recipe, folder, last="contrastive")
    return recipe


def evaluators_of(recipe: ColourRecipe, clean: Clean) -> dict[str, ColourEvaluator]:
    """The recipe's ways to ask about the test split."""
    return split_evaluators(recipe.examples, recipe.groups["test"], recipe.tokenizer, clean)


class ColourClassifier(nn.Module):
    """The image tower with a linear layer over all colours of the feed."""

    def __init__(self, tower: ColourTower, colours: int) -> None:
        super().__init__()
        self.tower = tower
        self.output = nn.Linear(tower.config.embed_dim, colours)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, H, W, 3] uint8 -> [N, C] logits."""
        return self.classify(self.tower(pixel_values))

    def classify(self, image_embeds: Tensor) -> Tensor:
        """[N, D], unit length -> [N, C] logits; brought to a length that can be sure."""
        return self.output(image_embeds * self.tower.config.embed_dim**0.5)


class ColourClassifierTask(Task[ColourClassifier]):
    """Trains a classifier of photos, and uses it on products one photo at a time."""

    def __init__(self, recipe: ColourRecipe) -> None:
        super().__init__()
        self.name = "classifier"
        self.recipe = recipe
        self.colours = recipe.examples.colours()
        settings = recipe.settings
        torch.manual_seed(settings.seed)
        tower = small_colour_tower(*settings.image_size, settings.matcher.embed_dim)
        self.model = ColourClassifier(tower, len(self.colours))
        self.dataset = ColourPairs(recipe.examples, recipe.tokenizer, settings.noise, clean_labels)

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """Logits of all colours."""
        return {"logits": model(batch["pixel_values"])}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """Cross-entropy over all colours."""
        return {"colour": F.cross_entropy(outputs["logits"], batch["colours"])}

    def evaluate(self) -> dict[str, float]:
        """The report on the validation products."""
        validation = self.recipe.validation
        return validation.measured(self.answers(validation)).flat()

    @torch.no_grad()
    def answers(self, evaluator: ColourEvaluator) -> list[np.ndarray]:
        """Of each product the probabilities [n, m], each photo choosing for itself among the product's colours."""
        place = {colour: number for number, colour in enumerate(self.colours)}
        photos = np.array([row for group in evaluator.groups for row in group.photos])
        rows, inverse = np.unique(photos, return_inverse=True)
        logits = self.model.classify(embed_photos(self.model.tower, self.recipe.examples, rows))[inverse]
        answered = []
        for group, own in zip(evaluator.groups, logits.split([len(g.photos) for g in evaluator.groups]), strict=True):
            # A colour that training never showed has no class: nothing speaks for it.
            columns = [own[:, place[name]] if name in place else own.min(1).values for name in group.colours]
            answered.append(torch.stack(columns, 1).softmax(1).numpy())
        return answered


def train_classifier(task: ColourClassifierTask, folder: Path) -> ColourClassifierTask:
    """Trains a classifier as the recipe trains its towers: as many epochs, in the same two rounds of rates."""
    settings, accelerator, depends = task.recipe.settings, task.recipe.accelerator, task.recipe.store.digest
    tuned = settings.joint.model_copy(update={"batch_size": settings.contrastive.batch_size})
    for name, config in (("classifier", settings.contrastive), ("classifier-tuned", tuned)):
        task.name = name  # a checkpoint a round
        fit(task, config, folder, accelerator, seed=settings.seed, depends=depends)
    return task
