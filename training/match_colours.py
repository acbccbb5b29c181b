"""The recipe of the colour matcher: feed in, bundle out.

    read the feed -> decoded photos, colour groups, a character tokenizer
      -> contrastive   both towers on photos and written colours
      -> joint         towers and head on products, real ones and ones drawn within a category
      -> frozen        the head on embeddings of the fixed towers, several augmented views of every photo
      -> bundle        the joint or the frozen one, whichever is better on validation products, asked in all ways

Test products, by the hash of their group, are measured in the end: real groups, harder ones, with more labels than
photos, and with labels written as sellers write them. Every stage keeps its own checkpoint; a killed run goes on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from catalogue.colour_groups import ColourGroup, ColourGroups, colour_variant
from catalogue.colour_labels import clean_labels
from catalogue.feed import Feed, FeedError
from catalogue.label_noise import LabelNoise, written_labels
from catalogue.product import Product
from models.checkpoints import colour_tower_from_checkpoint, text_encoder_from_checkpoint
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, small_colour_tower
from models.encoders import TextEncoder, small_text_encoder
from models.matcher import MatcherConfig
from models.tokenizer import character_tokenizer, fit_max_length, load_tokenizer, set_length
from models.two_towers import TwoTowers

from .colour_bundle import ColourMatcherBundle, ColourMatcherConfig
from .colour_examples import Clean, ColourExamples, ColourPairs, ColourProducts, ProductMix, prepare_colour_examples
from .colour_tasks import (
    ColourContrastiveTask,
    ColourEvaluator,
    ColourFrozenTask,
    ColourJointTask,
    FrozenProducts,
    embed_photos,
)
from .train import TrainConfig, fit

SAMPLES = 16
HARDER_PRODUCTS = 500
DISTRACTORS = 4
WRITINGS_PER_COLOUR = 200


class ColourSettings(BaseModel):
    """Settings of the whole recipe."""

    model_config = ConfigDict(extra="forbid")

    image_height: PositiveInt = Field(80, description="pixels photos are brought to")
    image_width: PositiveInt = 64
    image_checkpoint: Path | None = Field(None, description="Hugging Face folder to start the image tower from")
    label_checkpoint: Path | None = Field(None, description="Hugging Face BERT folder: labels go through it and a GRU")
    matcher: MatcherConfig = MatcherConfig()
    noise: LabelNoise = LabelNoise()
    mix: ProductMix = ProductMix()
    contrastive: TrainConfig = TrainConfig(epochs=5, batch_size=128, learning_rate=1e-3)
    joint: TrainConfig = TrainConfig(epochs=4, batch_size=32, learning_rate=5e-4)
    frozen: TrainConfig = TrainConfig(epochs=10, batch_size=64, learning_rate=5e-4)
    contrastive_weight: NonNegativeFloat = Field(0.5, description="of the contrastive loss beside the joint one")
    views: PositiveInt = Field(4, description="augmented views of every photo that the frozen stage sees")
    seed: NonNegativeInt = 0

    def overridden(self, *, epochs: int | None = None, seed: int | None = None, **given: Any) -> ColourSettings:
        """These settings with what a command line gives; None leaves a setting as it is.

        Args:
            epochs: of the joint stage.
            seed: of every stage.
            given: any other setting by name.

        Raises:
            ValueError: a value is not allowed; the message names it.
        """
        values = self.model_dump() | {name: value for name, value in given.items() if value is not None}
        if epochs is not None:
            values["joint"] = values["joint"] | {"epochs": epochs}
        if seed is not None:
            values["seed"] = seed
        for stage in ("contrastive", "joint", "frozen"):
            values[stage] = values[stage] | {"seed": values["seed"]}
        return ColourSettings.model_validate(values)


@dataclass(frozen=True)
class ColourMaterial:
    """What the stages share: the photos, the tokenizer of labels, and the measuring of validation products."""

    examples: ColourExamples
    tokenizer: Tokenizer
    validation: ColourEvaluator


def train_colour_matcher(
    feed: Feed, settings: ColourSettings, folder: Path, accelerator: Accelerator, *, clean: Clean = clean_labels
) -> ColourMatcherBundle:
    """Trains a colour matcher.

    Args:
        feed: products with a base colour; groups of split "train" are learnt from, "val" chooses, "test" is measured.
        settings: see `ColourSettings`.
        folder: of the run: decoded photos, checkpoints, TensorBoard files. Given again, the run is resumed.
        accelerator: from `training.train.make_accelerator`.
        clean: cleans the labels of a product; the server cleans with `clean_labels`.

    Returns:
        The bundle, not yet written.

    Raises:
        catalogue.feed.FeedError: the feed is broken, or has no products in several colours.
    """
    towers, material = train_towers(feed, settings, folder, accelerator, clean=clean)
    examples, tokenizer = material.examples, material.tokenizer
    torch.manual_seed(settings.seed)  # the same head, whether the stage before was trained just now or resumed
    matcher = ColourMatcher(towers.image_encoder, towers.text_encoder, ColourHead(settings.matcher))
    products = ColourProducts(examples, tokenizer, settings.noise, clean, settings.mix)
    scale = towers.scale.detach()
    joint = ColourJointTask(matcher, scale, products, material.validation, settings.contrastive_weight)
    fit(joint, settings.joint, folder, accelerator)
    candidates = {"joint": matcher}
    if settings.frozen.epochs:
        tuned = copy.deepcopy(matcher)
        with accelerator.autocast():  # as the tower was trained
            embedded = frozen_products(tuned.image_encoder, products, settings.views)
        frozen = ColourFrozenTask(tuned, embedded, material.validation)
        fit(frozen, settings.frozen, folder, accelerator)
        candidates["frozen"] = tuned

    groups = {split: ColourGroups(examples.variants, split) for split in ("train", "val", "test")}
    choosing, measuring = (split_evaluators(examples, groups[split], tokenizer, clean) for split in ("val", "test"))
    scores, metrics = {}, {}
    for name, candidate in candidates.items():
        candidate.eval()
        scores[name] = np.mean([list(evaluator.report(candidate).flat().values()) for evaluator in choosing.values()])
        metrics[name] = {kind: asdict(evaluator.report(candidate)) for kind, evaluator in measuring.items()}
    served = max(scores, key=lambda name: scores[name])

    config = ColourMatcherConfig(
        image_encoder=matcher.image_encoder.config,
        text_encoder=matcher.text_encoder.config,
        matcher=settings.matcher,
        training={
            "feed": feed.path.name,
            "photos": {split: len(examples.rows(split)) for split in ("train", "val", "test")},
            "groups": {split: len(own) for split, own in groups.items()},
            "settings": settings.model_dump(mode="json"),
        },
        metrics={"served": served, **metrics},
    )
    samples = sample_products(feed, examples, list(groups["test"].evaluation())[:SAMPLES])
    return ColourMatcherBundle(config, candidates[served].cpu(), tokenizer, samples)


def train_towers(
    feed: Feed, settings: ColourSettings, folder: Path, accelerator: Accelerator, *, clean: Clean = clean_labels
) -> tuple[TwoTowers[ColourTower], ColourMaterial]:
    """Prepares a feed and trains both towers contrastively on it: the first part of the recipe.

    Arguments and errors as in `train_colour_matcher`.
    """
    with accelerator.main_process_first():
        examples = prepare_colour_examples(feed, settings.image_height, settings.image_width, folder / "photos")
    for split in ("val", "test"):
        if not len(ColourGroups(examples.variants, split)):
            raise FeedError(
                f"{feed.path} has no product in two colours in split {split!r}: see catalogue.colour_groups"
            )
    tokenizer = label_tokenizer(examples.colours(), settings, clean)
    validation = ColourGroups(examples.variants, "val").evaluation()
    material = ColourMaterial(examples, tokenizer, ColourEvaluator(examples, list(validation), tokenizer, clean))
    towers = colour_towers(settings, tokenizer)
    pairs = ColourPairs(examples, tokenizer, settings.noise, clean)
    fit(ColourContrastiveTask(towers, pairs, material.validation), settings.contrastive, folder, accelerator)
    return towers, material


def frozen_products(tower: ColourTower, products: ColourProducts, views: int) -> FrozenProducts:
    """Products with their photos as embeddings of a fixed tower, in so many augmented views of each training photo."""
    examples = products.examples
    rows = examples.rows("train")
    embeddings = torch.stack([embed_photos(tower, examples, rows, seed=view) for view in range(views)])
    place = np.zeros(len(examples.variants), int)
    place[rows] = np.arange(len(rows))
    return FrozenProducts(products, embeddings, place)


def label_tokenizer(colours: Sequence[str], settings: ColourSettings, clean: Clean) -> Tokenizer:
    """The tokenizer of labels, of fixed length: characters, or the checkpoint's own."""
    chance = random.Random(settings.seed)
    texts = [clean(written_labels(colours, settings.noise, chance)) for _ in range(WRITINGS_PER_COLOUR)]
    flat = [text for product in texts for text in product]
    if settings.label_checkpoint is not None:
        tokenizer = load_tokenizer(settings.label_checkpoint)
    else:
        tokenizer = character_tokenizer(flat)
    return set_length(tokenizer, fit_max_length(tokenizer, flat, quantile=1.0))


def colour_towers(settings: ColourSettings, tokenizer: Tokenizer) -> TwoTowers[ColourTower]:
    """Both towers, from scratch or from checkpoints, at the beginning of training."""
    torch.manual_seed(settings.seed)
    size, width = (settings.image_height, settings.image_width), settings.matcher.embed_dim
    length = len(tokenizer.encode("").ids)
    image_encoder: ColourTower
    if settings.image_checkpoint is not None:
        image_encoder = colour_tower_from_checkpoint(settings.image_checkpoint, *size, width)
    else:
        image_encoder = small_colour_tower(*size, width)
    text_encoder: TextEncoder
    if settings.label_checkpoint is not None:
        text_encoder = text_encoder_from_checkpoint(settings.label_checkpoint, width, length, pooling="gru")
    else:
        text_encoder = small_text_encoder(tokenizer.get_vocab_size(), length, width, hidden_size=128)
    return TwoTowers(image_encoder, text_encoder)


def split_evaluators(
    examples: ColourExamples, groups: ColourGroups, tokenizer: Tokenizer, clean: Clean
) -> dict[str, ColourEvaluator]:
    """The ways to ask about a split: real groups; written by sellers in English and in Chinese; harder; more labels."""
    real = list(groups.evaluation())
    evaluators = {"real": ColourEvaluator(examples, real, tokenizer, clean)}
    for language, chinese in (("english", 0.0), ("chinese", 1.0)):
        chance = random.Random(0)
        labels = [written_labels(group.colours, LabelNoise(chinese=chinese), chance) for group in real]
        evaluators[f"real, written in {language}"] = ColourEvaluator(examples, real, tokenizer, clean, labels)
    if groups.has_harder:
        for name, distractors in (("harder", 0), ("harder, more labels", DISTRACTORS)):
            chance = random.Random(0)
            harder = [groups.harder(chance, distractors=distractors) for _ in range(HARDER_PRODUCTS)]
            evaluators[name] = ColourEvaluator(examples, harder, tokenizer, clean)
    return evaluators


def sample_products(feed: Feed, examples: ColourExamples, groups: Sequence[ColourGroup]) -> list[list[Product]]:
    """The feed's products behind the photos of some groups, one list a group."""
    wanted = {row for group in groups for row in group.photos}
    found: dict[int, Product] = {}
    row = 0
    for product in feed:
        if colour_variant(product) is None:
            continue
        for image in product.images:
            if row in wanted:
                found[row] = Product(
                    product.id, (image,), product.title, product.category, product.entities, split="test"
                )
            row += 1
    return [[found[row] for row in group.photos] for group in groups]


def report_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The metrics of a bundle, a line a stage and kind of product."""
    yield f"{'share of photos / of whole products right':44} {'arg-max':17} {'one-to-one':17}"
    for stage, reports in metrics.items():
        if isinstance(reports, dict):
            served = " (served)" if stage == metrics["served"] else ""
            for kind, report in reports.items():
                figures = [
                    f"{report[d]['images']:.4f} / {report[d]['products']:.4f}" for d in ("arg_max", "one_to_one")
                ]
                yield f"{stage + served:16} {kind:27} {figures[0]:17} {figures[1]:17} ({report['products']} products)"
