"""The recipe of the colour matcher: feed in, bundle out.

    store -> photos with colours, colour groups, a character tokenizer
      -> contrastive   both towers on photos and written colours
      -> joint         towers and head on products, real ones and ones drawn within a category
      -> frozen        the head on embeddings of the fixed towers, several augmented views of every photo
      -> bundle        the joint or the frozen one, whichever is better on validation products, asked in all ways

Test products, by the hash of their group, are measured in the end: real groups, those of unseen photos among them,
harder ones, with more labels than photos, and with labels written as sellers write them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, NonNegativeFloat, PositiveInt
from tokenizers import Tokenizer

from catalogue.colour_groups import ColourGroups, colour_variant
from catalogue.colour_labels import clean_labels
from catalogue.feed import Feed, FeedError
from catalogue.label_noise import LabelNoise, written_labels
from catalogue.product import Product
from catalogue.store import Store
from models.checkpoints import colour_tower_from_checkpoint, imagenet_backbone, text_encoder_from_checkpoint
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, ColourTowerConfig, small_colour_tower
from models.efficientnet_lite import PACKAGE, imagenet_weights
from models.encoders import TextEncoder, TextEncoderConfig, small_text_encoder
from models.matcher import MatcherConfig
from models.tokenizer import character_tokenizer, fit_max_length, load_tokenizer, set_length
from models.two_towers import TwoTowers

from .bundle import Bundle, BundleConfig, BundleKind
from .colour_examples import Clean, ColourExamples, ColourPairs, ColourProducts, ProductMix, make_colour_examples
from .colour_tasks import (
    ColourContrastiveTask,
    ColourEvaluator,
    ColourFrozenTask,
    ColourJointTask,
    FrozenProducts,
    embed_photos,
)
from .recipe import Recipe, Stage
from .settings import Settings, TrainConfig

SAMPLES = 16
HARDER_PRODUCTS = 500
DISTRACTORS = 4
WRITINGS_PER_COLOUR = 200


class ColourSettings(Settings):
    """Settings of the whole recipe."""

    aliases: ClassVar = {"epochs": "joint.epochs"}

    image_tower: Literal["imagenet", "scratch"] = Field(
        "scratch", description="image tower: a small ResNet, or EfficientNet-Lite0 where its package is installed"
    )
    image_checkpoint: Path | None = Field(None, description="Hugging Face folder with the image tower instead")
    label_checkpoint: Path | None = Field(None, description="Hugging Face BERT folder: labels go through it and a GRU")
    matcher: MatcherConfig = MatcherConfig()
    noise: LabelNoise = LabelNoise()
    mix: ProductMix = ProductMix()
    contrastive: TrainConfig = TrainConfig(epochs=5, batch_size=128, learning_rate=1e-3)
    joint: TrainConfig = TrainConfig(epochs=4, batch_size=32, learning_rate=5e-4)
    frozen: TrainConfig = TrainConfig(epochs=10, batch_size=64, learning_rate=5e-4)
    contrastive_weight: NonNegativeFloat = Field(0.5, description="of the contrastive loss beside the joint one")
    label_share: float = Field(0.5, ge=0, le=1, description="of the loss in which each label is asked for its photo")
    views: PositiveInt = Field(4, description="augmented views of every photo that the frozen stage sees")


class ColourMatcherConfig(BundleConfig):
    """`config.json` of a colour matcher's bundle."""

    system: Literal["match-colours"] = "match-colours"
    image_encoder: ColourTowerConfig
    text_encoder: TextEncoderConfig
    matcher: MatcherConfig


ColourMatcherBundle = Bundle[ColourMatcherConfig, ColourMatcher]


def build_colour_matcher(config: ColourMatcherConfig) -> ColourMatcher:
    """A colour matcher of the given architecture with random weights."""
    return ColourMatcher(
        ColourTower(config.image_encoder), TextEncoder(config.text_encoder), ColourHead(config.matcher)
    )


def sample_groups(samples: Sequence[Product]) -> list[list[Product]]:
    """The samples of a bundle, one a colour, as products of the matcher: those that differ in the colour word alone.

    Raises:
        ValueError: a sample has no image or no base_colour.
    """
    groups: dict[str, list[Product]] = {}
    for sample in samples:
        variant = colour_variant(sample)
        if variant is None:
            raise ValueError(f"samples.parquet: product {sample.id!r} has no image or no base_colour")
        groups.setdefault(variant.group, []).append(sample)
    return list(groups.values())


def check_colour_matcher(bundle: ColourMatcherBundle) -> None:
    """Raises ValueError where a sample is no colour variant."""
    sample_groups(bundle.samples)


COLOUR_MATCHER = BundleKind(
    ColourMatcherConfig,
    build_colour_matcher,
    text_encoder=lambda config: config.text_encoder,
    check=check_colour_matcher,
)


class ColourRecipe(Recipe[ColourSettings, ColourMatcherConfig, ColourMatcher]):
    """A colour matcher trained on one feed.

    `clean` cleans the labels of a product; the server cleans with `clean_labels`.
    """

    kind = COLOUR_MATCHER
    own_splits = True
    clean: Clean = staticmethod(clean_labels)

    def __init__(self, store: Store, settings: ColourSettings, accelerator: Accelerator) -> None:
        super().__init__(store, settings, accelerator)
        self.examples = self.make_examples()
        self.groups = {split: ColourGroups(self.examples.variants, split) for split in ("train", "val", "test")}
        for split in ("val", "test"):
            if not len(self.groups[split]):
                raise FeedError(
                    f"{store.feed} has no product in two colours in split {split!r}: see catalogue.colour_groups"
                )
        self.tokenizer = label_tokenizer(self.examples.colours(), settings, self.clean)
        self.validation = ColourEvaluator(
            self.examples, list(self.groups["val"].evaluation()), self.tokenizer, self.clean
        )
        self.products = ColourProducts(self.examples, self.tokenizer, settings.noise, self.clean, settings.mix)
        if settings.image_tower == "imagenet" and settings.image_checkpoint is None and imagenet_weights() is None:
            self.notes.append(f"the package {PACKAGE} is not installed: the image tower is trained from scratch")
        self.towers = colour_towers(settings, self.tokenizer).to(accelerator.device)

    def make_examples(self) -> ColourExamples:
        """The photos with their colours and splits."""
        return make_colour_examples(self.store)

    def stages(self) -> Iterator[Stage]:
        """contrastive, joint, frozen."""
        settings = self.settings
        yield self.contrastive_stage()
        head = ColourHead(settings.matcher)
        matcher = ColourMatcher(self.towers.image_encoder, self.towers.text_encoder, head).to(self.accelerator.device)
        scale = self.towers.scale.detach()
        joint = ColourJointTask(
            matcher, scale, self.products, self.validation, settings.contrastive_weight, settings.label_share
        )
        yield Stage(joint, settings.joint, ("joint", matcher))
        if settings.frozen.epochs:
            tuned = copy.deepcopy(matcher)
            embedded = frozen_products(tuned.image_encoder, self.products, settings.views)
            frozen = ColourFrozenTask(tuned, embedded, self.validation, settings.label_share)
            yield Stage(frozen, settings.frozen, ("frozen", tuned))

    def contrastive_stage(self) -> Stage:
        """The training of the two towers."""
        settings = self.settings
        pairs = ColourPairs(self.examples, self.tokenizer, settings.noise, self.clean)
        return Stage(ColourContrastiveTask(self.towers, pairs, self.validation), settings.contrastive)

    def score(self, model: ColourMatcher) -> float:
        """The mean of all figures over all ways to ask."""
        reports = [evaluator.report(model).flat().values() for evaluator in self.evaluators("val").values()]
        return float(np.mean([list(figures) for figures in reports]))

    def measure(self, model: ColourMatcher) -> dict[str, Any]:
        """A report for each way to ask."""
        return {kind: asdict(evaluator.report(model)) for kind, evaluator in self.evaluators("test").items()}

    def evaluators(self, split: Literal["val", "test"]) -> dict[str, ColourEvaluator]:
        """The ways to ask about a split; see `split_evaluators`."""
        return split_evaluators(self.examples, self.groups[split], self.tokenizer, self.clean)

    def config(self, model: ColourMatcher) -> ColourMatcherConfig:
        """Architecture of the bundle."""
        return ColourMatcherConfig(
            image_encoder=model.image_encoder.config,
            text_encoder=model.text_encoder.config,
            matcher=self.settings.matcher,
        )

    def counts(self) -> dict[str, Any]:
        """Photos and groups by split."""
        return {
            "photos": {split: len(self.examples.rows(split)) for split in self.groups},
            "groups": {split: len(own) for split, own in self.groups.items()},
        }

    def samples(self, feed: Feed) -> list[Product]:
        """The feed's products behind the photos of some held-out groups, one a photo, group after group."""
        groups = list(self.groups["test"].evaluation())[:SAMPLES]
        wanted = {row for group in groups for row in group.photos}
        images = (image for product in feed for image in product.images)
        found = {row: image for row, image in enumerate(images) if row in wanted}
        return [self._sample(row, found[row]) for group in groups for row in group.photos]

    def _sample(self, photo: int, image: bytes) -> Product:
        store, row = self.store, self.store.photo_product[photo]
        entities = {group: values[row] for group, values in store.entities.items() if values[row]}
        return Product(store.ids[row], (image,), store.titles[row], store.categories[row], entities, split="test")


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
    size, width = settings.image_size, settings.matcher.embed_dim
    length = len(tokenizer.encode("").ids)
    image_encoder: ColourTower
    pretrained = imagenet_backbone() if settings.image_tower == "imagenet" else None
    if settings.image_checkpoint is not None:
        image_encoder = colour_tower_from_checkpoint(settings.image_checkpoint, *size, width)
    elif pretrained is not None:
        image_encoder = pretrained.colour_tower(width, *size)
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
    """The ways to ask about a split: real groups, those of them whose photos no training product has, written by
    sellers in English and in Chinese; harder; more labels."""
    real = list(groups.evaluation())
    seen = set(examples.store.photo_keys[examples.rows("train")].tolist())
    unseen = [group for group in real if not seen & set(examples.store.photo_keys[list(group.photos)].tolist())]
    evaluators = {"real": ColourEvaluator(examples, real, tokenizer, clean)}
    if unseen:
        evaluators["real, unseen"] = ColourEvaluator(examples, unseen, tokenizer, clean)
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
