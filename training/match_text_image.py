"""The recipe of text-image matching: FashionBERT, pre-trained on titles and photos, then with queries beside them.

    store -> tokenizer, visual words, examples
      -> pairs     T-I: title and photo; masked words, masked patches, alignment
      -> queries   Q-T-I: the same with queries made from the feed, from where the first ended
      -> bundle    the last

Losses are weighed by the paper's adaptive loss in either form, or equally.  Every loss and its weight is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from accelerate import Accelerator
from pydantic import Field, PositiveFloat, PositiveInt
from tokenizers import Tokenizer
from torch import nn

from catalogue.feed import FeedError
from catalogue.store import Store
from models.checkpoints import image_encoder_from_checkpoint, text_encoder_from_checkpoint
from models.encoders import ImageEncoder, TextEncoderConfig
from models.fashionbert import FashionBert, FashionBertConfig, PatchGrid, PatchTower, small_bert
from models.tokenizer import fit_max_length, load_tokenizer, set_length, train_tokenizer

from .adaptive_loss import AdaptiveLoss, EqualWeights, GradientAdaptiveLoss
from .bundle import Bundle, BundleConfig, BundleKind
from .examples import make_examples, training_titles
from .match_examples import MaskedPairs
from .match_metrics import HeldOutPairs
from .match_tasks import MatchTask
from .queries import QueryMaker
from .recipe import Recipe, Stage
from .settings import Settings, TrainConfig
from .visual_words import visual_words

VALIDATED = 1000  # photos that an epoch is judged by


class MatchSettings(Settings):
    """Settings of the whole recipe."""

    aliases: ClassVar = {"epochs": "pairs.epochs"}

    language_model: Path | None = Field(None, description="Hugging Face folder of a BERT (MiniLM, …) to start from")
    image_checkpoint: Path | None = Field(
        None, description="Hugging Face folder (ViT, DINOv2, …) whose feature map gives the patches; else a ResNet"
    )
    grid_rows: PositiveInt = Field(4, description="patches from top to bottom (8 in the paper); a checkpoint's own")
    grid_columns: PositiveInt = Field(4, description="patches from left to right (8 in the paper); a checkpoint's own")
    hidden_size: PositiveInt = Field(144, description="width of a BERT from scratch, a multiple of 48")
    layers: PositiveInt = Field(2, description="of a BERT from scratch")
    vocab_size: PositiveInt = Field(8000, description="tokens of the tokenizer trained on the feed's titles")
    visual_words: PositiveInt = Field(256, description="words of the distribution that tells what a patch shows")
    whole_words: bool = Field(True, description="mask whole words, not single tokens")
    patch_modelling: bool = Field(True, description="predict masked patches (MPM)")
    contrast: bool = Field(True, description="bring words and patches into one space before they meet (ITC)")
    balance: Literal["equal", "losses", "gradients"] = Field(
        "losses", description="weights of the losses: equal, or adaptive by their softmax or by their gradients' norms"
    )
    alpha: PositiveFloat = Field(1.0, description="evenness of the adaptive weights, at least 1")
    pairs: TrainConfig = TrainConfig(epochs=6, batch_size=32, learning_rate=1e-3, warmup=0.05)
    queries: TrainConfig = TrainConfig(epochs=1, batch_size=32, learning_rate=5e-4)

    @property
    def suitable_size(self) -> tuple[int, int]:
        """Height and width of images where none is set: a patch should show more than a colour."""
        return super().suitable_size if self.image_checkpoint else (80, 64)


class MatchConfig(BundleConfig):
    """`config.json` of a matcher's bundle."""

    system: Literal["match-text-image"] = "match-text-image"
    fashionbert: FashionBertConfig


MatchBundle = Bundle[MatchConfig, FashionBert]

MATCHER = BundleKind(
    MatchConfig,
    lambda config: FashionBert(config.fashionbert),
    text_encoder=lambda config: config.fashionbert.text,
)


class MatchRecipe(Recipe[MatchSettings, MatchConfig, FashionBert]):
    """A text-image matcher trained on one feed."""

    kind = MATCHER

    def __init__(self, store: Store, settings: MatchSettings, accelerator: Accelerator) -> None:
        super().__init__(store, settings, accelerator)
        if settings.pairs.chunk or settings.queries.chunk:
            raise ValueError(
                "chunk is for contrastive losses; use accumulate for steps of more pairs than memory holds"
            )
        self.tokenizer, self.model = make_model(store, settings)
        self.model.to(accelerator.device)
        self.examples = make_examples(store, self.tokenizer)
        self.training = self.examples.paired_rows("train")
        if not len(self.training):
            raise FeedError(f"{store.feed} has no product with title and photo in the training split")
        if not len({store.titles[product] for product in self.examples.product[self.training]}) > 1:
            raise FeedError(f"{store.feed} has one title only: no text that does not belong to a photo")
        self.maker = QueryMaker(store)

    def stages(self) -> Iterator[Stage]:
        """pairs, queries."""
        settings = self.settings
        patches = self.model.config.patches
        words = None
        if settings.patch_modelling:
            photos = self.examples.photo[self.training]
            words = visual_words(
                self.store, photos, patches.rows, patches.columns, settings.visual_words, settings.seed
            )
        for name, config in (("pairs", settings.pairs), ("queries", settings.queries)):
            asks = name == "queries"
            if asks and not config.epochs:
                return
            pairs = MaskedPairs(
                self.examples,
                self.training,
                self.tokenizer,
                patches.rows * patches.columns,
                whole_words=settings.whole_words,
                queries=self.maker if asks else None,
            )
            validation = self.held_out("val", queries=asks, limit=VALIDATED)
            measure = partial(flat, validation, self.model)
            task = MatchTask(name, self.model, pairs, words, settings.contrast, self.combiner(), measure)
            last = asks or not settings.queries.epochs
            yield Stage(task, config, (name, self.model) if last else None)

    def combiner(self) -> nn.Module:
        """What weighs the losses."""
        if self.settings.balance == "equal":
            return EqualWeights()
        if self.settings.balance == "losses":
            return AdaptiveLoss(self.settings.alpha)
        return GradientAdaptiveLoss(self.model.patch_projection.parameters(), self.settings.alpha)

    def held_out(self, split: Literal["val", "test"], *, queries: bool, limit: int | None = None) -> HeldOutPairs:
        """What a model is asked about a split."""
        rows = self.examples.paired_rows(split)[:limit]
        return HeldOutPairs(self.examples, rows, self.settings.seed, self.maker if queries else None, self.tokenizer)

    def score(self, model: FashionBert) -> float:
        """AUC of titles on the validation split."""
        return flat(self.held_out("val", queries=False), model).get("title_auc", float("nan"))

    def measure(self, model: FashionBert) -> dict[str, Any]:
        """Accuracy and AUC of titles and of queries over the test split, and over what is new in title and photo."""
        pairs = self.held_out("test", queries=bool(self.settings.queries.epochs))
        unseen = pairs.report(model, self.store.unseen)
        return pairs.report(model) | {f"{name}, unseen": figures for name, figures in unseen.items()}

    def config(self, model: FashionBert) -> MatchConfig:
        """Architecture of the bundle."""
        return MatchConfig(fashionbert=model.config)

    def counts(self) -> dict[str, Any]:
        """Pairs by split."""
        return {"pairs": {split: len(self.examples.paired_rows(split)) for split in ("train", "val", "test")}}


def flat(pairs: HeldOutPairs, model: FashionBert) -> dict[str, float]:
    """The figures of a report in one dictionary."""
    return {
        f"{asked}_{name}": value
        for asked, figures in pairs.report(model).items()
        for name, value in figures.items()
        if name != "photos"
    }


def make_model(store: Store, settings: MatchSettings) -> tuple[Tokenizer, FashionBert]:
    """The tokenizer and the model at the beginning of training, its parts from scratch or from checkpoints.

    Raises:
        FileNotFoundError, ValueError: a checkpoint cannot be used.
    """
    titles = training_titles(store)
    tokenizer = (
        load_tokenizer(settings.language_model)
        if settings.language_model is not None
        else train_tokenizer(titles, settings.vocab_size)
    )
    max_length = fit_max_length(tokenizer, titles)
    set_length(tokenizer, max_length)
    language_model, tower = None, None
    if settings.language_model is not None:
        encoder = text_encoder_from_checkpoint(settings.language_model, settings.hidden_size, max_length)
        if encoder.config.backbone["model_type"] != "bert":
            kind = encoder.config.backbone["model_type"]
            raise ValueError(f"{settings.language_model} is no BERT but of kind {kind!r}")
        language_model, text = encoder.backbone, encoder.config
    else:
        backbone = small_bert(
            tokenizer.get_vocab_size(), max_length, hidden_size=settings.hidden_size, layers=settings.layers
        )
        text = TextEncoderConfig(backbone=backbone, projection_dim=settings.hidden_size, max_length=max_length)
    size = settings.image_size
    patches: PatchGrid | PatchTower
    if settings.image_checkpoint is not None:
        image_encoder = image_encoder_from_checkpoint(settings.image_checkpoint, settings.hidden_size, size)
        tower = image_encoder.backbone
        rows, columns = feature_grid(image_encoder)
        patches = PatchTower(encoder=image_encoder.config, rows=rows, columns=columns)
    else:
        patches = PatchGrid(height=size[0], width=size[1], rows=settings.grid_rows, columns=settings.grid_columns)
    config = FashionBertConfig(
        text=text, patches=patches, visual_words=settings.visual_words, entrance=settings.contrast
    )
    return tokenizer, FashionBert(config, language_model, tower)


def feature_grid(encoder: ImageEncoder) -> tuple[int, int]:
    """Rows and columns of an encoder's feature map.

    Raises:
        ValueError: its entries do not cover the photo evenly.
    """
    height, width, count = encoder.config.height, encoder.config.width, encoder.patch_count
    rows = max(1, round(math.sqrt(count * height / width)))
    if count % rows:
        raise ValueError(f"a map of {count} patches does not cover {height}x{width} pixels evenly")
    return rows, count // rows
