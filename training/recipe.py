"""What the recipes of all systems have in common: prepare, train stage by stage, choose, measure, record.

A recipe is a class: its constructor prepares a feed, `stages` yields one training after the other, and whatever it does
between two of them comes after the first was trained.  Candidates are compared on the validation split, all of them
measured on the test split, and the best becomes the bundle.  Every stage keeps its own checkpoint, which holds only
under the same settings, feed, inputs and stages before it; a killed run goes on in the stage where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer
from torch import nn

from catalogue.feed import Feed, FeedError
from catalogue.images import is_readable
from catalogue.product import Product
from catalogue.store import Store, open_store

from .bundle import Bundle, BundleKind, Config, Model, start_from
from .settings import Settings, TrainConfig
from .train import Task, fit

SAMPLES = 64
STORE_FOLDER = "store"

RecipeSettings = TypeVar("RecipeSettings", bound=Settings)


@dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Attributes:
        task: what is trained.
        config: how.
        candidate: a model that may be served once the stage is over, with its name in the record.
        inputs: names what the stage depends on beside settings, feed and the stages before it: a label table, say.
    """

    task: Task[Any]
    config: TrainConfig
    candidate: tuple[str, nn.Module] | None = None
    inputs: str = ""


class Recipe(ABC, Generic[RecipeSettings, Config, Model]):
    """One system trained on one feed.

    Args:
        store: the decoded feed.
        settings: of the recipe.
        accelerator: of the program; models live on its device.

    Attributes:
        kind: what its bundles hold.
        own_splits: whether products are shared out otherwise than the feed says.
        notes: what whoever trains should be told, a sentence each; goes into the record.

    Raises:
        FeedError: the feed lacks what the system learns from.
    """

    kind: ClassVar[BundleKind[Any, Any]]
    own_splits: ClassVar[bool] = False
    tokenizer: Tokenizer

    def __init__(self, store: Store, settings: RecipeSettings, accelerator: Accelerator) -> None:
        self.store = store
        self.settings = settings
        self.accelerator = accelerator
        self.notes = list(store.notes)

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """The trainings, each yielded when it is to begin; code behind a yield sees its result."""

    def calibrate(self, model: Model) -> None:
        """Fits on the validation split what a candidate in evaluation mode is served with beside its weights."""

    @abstractmethod
    def score(self, model: Model) -> float:
        """How good a candidate in evaluation mode is on the validation split; more is better, NaN is unknown."""

    @abstractmethod
    def measure(self, model: Model) -> dict[str, Any]:
        """Figures of a candidate in evaluation mode on the test split, for the record; {} where there is none."""

    @abstractmethod
    def config(self, model: Model) -> Config:
        """`config.json` of the bundle; training and metrics are filled in."""

    def counts(self) -> dict[str, Any]:
        """What the record says of the data."""
        return {}

    def extras(self) -> dict[str, Any]:
        """The bundle's further files."""
        return {}

    def sample(self, product: Product) -> bool:
        """Whether a held-out product, whose images can be read, shows what the system does."""
        return bool(product.images and product.title)

    def samples(self, feed: Feed) -> Sequence[Product]:
        """Held-out products for the bundle: parity checks, warm-up and readiness run on them."""
        return held_out_samples(feed, self.store, self.sample)


def train(
    recipe_type: type[Recipe[Any, Config, Model]],
    feed: Feed,
    settings: Settings,
    folder: Path,
    accelerator: Accelerator,
    *,
    stores: Path | None = None,
) -> Bundle[Config, Model]:
    """Trains a system on a feed.

    Args:
        recipe_type: the system's recipe.
        feed: products; those of split "train" are learnt from, "val" chooses, "test" is only measured.
        settings: of the recipe.
        folder: of the run: checkpoints, TensorBoard files. Given again, the run is resumed.
        accelerator: from `training.train.make_accelerator`.
        stores: where decoded feeds are kept, beside the run's folder when None.

    Returns:
        The bundle, not yet written.

    Raises:
        catalogue.feed.FeedError: the feed is broken, or lacks what the system learns from.
        FloatingPointError: a training lost its way.
        ValueError: a setting is wrong, or `folder` holds checkpoints of another run.
    """
    torch.manual_seed(settings.seed)
    with accelerator.main_process_first():
        store = open_store(feed, stores or folder.parent / STORE_FOLDER, *settings.image_size)
    if not recipe_type.own_splits:
        store.keep_validation()
    recipe = recipe_type(store, settings, accelerator)
    candidates = run_stages(recipe, folder)
    scores = {}
    for name, model in candidates.items():
        model.to(accelerator.device).eval()
        with torch.no_grad():
            recipe.calibrate(model)
            scores[name] = recipe.score(model)
    served = choose(scores)
    with torch.no_grad():
        measured = {name: recipe.measure(model) for name, model in candidates.items()}
    if not any(measured.values()):
        recipe.notes.append("the test split has nothing to measure on")
    model = candidates[served].cpu().eval()
    config = recipe.config(model).model_copy(
        update={
            "training": {
                "feed": store.feed,
                "products": len(store),
                **recipe.counts(),
                "notes": recipe.notes,
                "validation": {name: score for name, score in scores.items() if math.isfinite(score)},
                "settings": settings.model_dump(mode="json"),
            },
            "metrics": {"served": served, **measured},
        }
    )
    return Bundle(config, model, recipe.tokenizer, recipe.samples(feed), recipe.extras())


def run_stages(recipe: Recipe[Any, Any, Model], folder: Path, last: str | None = None) -> dict[str, Model]:
    """Trains the stages of a recipe, one after the other, to the end or through the one named `last`.

    Returns:
        The candidates by name.
    """
    settings = recipe.settings
    depends = digest(recipe.store.digest, json.dumps(settings.without_stages(), sort_keys=True))
    candidates: dict[str, Any] = {}
    first = True
    for stage in recipe.stages():
        if first and settings.start_from is not None:
            taken = start_from(stage.task.model, settings.start_from)
            recipe.notes.append(f"{taken} tensors of the first stage come from {settings.start_from}")
        first = False
        depends = digest(depends, stage.inputs)
        fit(stage.task, stage.config, folder, recipe.accelerator, seed=settings.seed, depends=depends)
        depends = digest(depends, stage.task.name, json.dumps(stage.config.identity(), sort_keys=True))
        torch.manual_seed(settings.seed)  # what comes now is the same after a stage trained just now or resumed
        if stage.candidate is not None:
            name, model = stage.candidate
            candidates[name] = model
        if stage.task.name == last:
            break
    return candidates


def choose(scores: dict[str, float]) -> str:
    """The candidate of the highest score; of candidates without one (NaN) the last, which was trained longest.

    Raises:
        ValueError: there is no candidate.
    """
    if not scores:
        raise ValueError("no stage of the recipe gave a model to serve")
    known = {name: score for name, score in scores.items() if not math.isnan(score)}
    return max(known, key=lambda name: known[name]) if known else list(scores)[-1]


def digest(*parts: str) -> str:
    """sha256 of some texts, told apart."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def held_out_samples(feed: Feed, store: Store, shows: Any, limit: int = SAMPLES) -> list[Product]:
    """The first held-out products that have most to show; products whose images cannot be read are none.

    Args:
        feed: read for its images.
        store: says which products are held out.
        shows: whether a product shows what the system does; others with an image or a title stand in where none does.
        limit: how many at most.

    Raises:
        FeedError: there is none.
    """
    whole: list[Product] = []
    partial: list[Product] = []
    for product, split in zip(feed, store.splits, strict=True):
        if split != 0 and (product.images or product.title) and all(map(is_readable, product.images)):
            (whole if shows(product) else partial).append(product)
            if len(whole) == limit:
                break
            del partial[limit:]  # enough, should there be no whole ones
    samples = (whole or partial)[:limit]
    if not samples:
        raise FeedError(f"{feed.path} has no held-out product with an image or a title")
    return samples
