"""The recipe of entity-aware retrieval, EI-CLIP: feed in, bundle out.

    store -> entity vocabulary, descriptions, tokenizer, examples
      -> frozen       on features of a pretrained image tower, computed once: minutes, whatever the tower costs
      -> finetune     everything, the pretrained towers at a lower rate
      -> bundle       with the better of the two on the validation split

Three losses in both. Towers start from a checkpoint folder, from ImageNet where the package with EfficientNet-Lite0 is
installed, or from scratch, where there is no first stage. Texts first, towers then: gradients of a random head would
spoil what a tower knows (Kumar et al., "Fine-Tuning can Distort Pretrained Features", 2022). Measured on the test split
in both directions, among all its products and among 100 of the same sub-category, and on those unseen in title and
photo; the gates say what each group of entities was worth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, NonNegativeFloat, PositiveInt
from tokenizers import Tokenizer

from catalogue.entities import EntityVocabulary
from catalogue.feed import FeedError
from catalogue.product import ENTITY_GROUPS
from catalogue.store import Store
from models.checkpoints import image_encoder_from_checkpoint, imagenet_image_encoder, text_encoder_from_checkpoint
from models.encoders import (
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    small_image_encoder,
    small_text_encoder,
)
from models.entities import EntityConfig, EntityTower
from models.retriever import Retriever
from models.tokenizer import fit_max_length, load_tokenizer, set_length, train_tokenizer

from .bundle import Bundle, BundleConfig, BundleKind, Extra
from .examples import training_titles
from .recipe import Recipe, Stage
from .retrieval_examples import Texts, TextViews, make_retrieval_examples, make_texts
from .retrieval_metrics import NEGATIVES, retrieval_report, sampled_report, sum_of_recalls
from .retrieval_task import EmbeddedRows, RetrievalTask, embed_rows, embed_texts, photo_features
from .settings import Settings, TrainConfig

VOCABULARY_FILE = "entities.json"
ATTRIBUTES_ASKED = ("base_colour", "brand", "sub_category")


class RetrievalSettings(Settings):
    """Settings of the whole recipe."""

    aliases: ClassVar = {"epochs": "finetune.epochs"}

    embed_dim: PositiveInt = Field(256, description="width of the embeddings; a CLIP checkpoint brings its own")
    vocab_size: PositiveInt = Field(8000, description="tokens of the tokenizer trained on the feed's titles")
    image_checkpoint: Path | None = Field(
        None, description="Hugging Face folder to start the image encoder from; else ImageNet's, where installed"
    )
    text_checkpoint: Path | None = Field(None, description="Hugging Face folder to start the text encoder from")
    from_scratch: bool = Field(False, description="no pretrained image encoder, even where its package is installed")
    tower_rate: NonNegativeFloat = Field(0.3, description="factor of the rate of pretrained towers in fine-tuning")
    min_count: PositiveInt = Field(5, description="training products that must name an entity, else it is unknown")
    gated: bool = Field(True, description="learned gates; else every group of entities counts the same")
    views: TextViews = Field(TextViews(), description="shares of the training texts in other views than the feed's")
    frozen: TrainConfig = TrainConfig(epochs=10, batch_size=1024, learning_rate=2e-3, weight_decay=1e-4)
    finetune: TrainConfig = TrainConfig(epochs=3, batch_size=512, learning_rate=3e-4, weight_decay=1e-4)


class RetrievalConfig(BundleConfig):
    """`config.json` of a retriever's bundle."""

    system: Literal["retrieve"] = "retrieve"
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    entities: EntityConfig


RetrievalBundle = Bundle[RetrievalConfig, Retriever]


def build_retriever(config: RetrievalConfig) -> Retriever:
    """A retriever of the given architecture with random weights."""
    return Retriever(ImageEncoder(config.image_encoder), TextEncoder(config.text_encoder), EntityTower(config.entities))


def check_retriever(bundle: RetrievalBundle) -> None:
    """Raises ValueError where the vocabulary does not fit the entity encoders."""
    found = {group: len(names) for group, names in bundle.extras[VOCABULARY_FILE].values.items()}
    wanted = dict(zip(bundle.config.entities.groups, bundle.config.entities.sizes, strict=True))
    if list(found.items()) != list(wanted.items()):
        raise ValueError(f"{VOCABULARY_FILE} has {found} values, the encoders in config.json {wanted}")


RETRIEVER = BundleKind(
    RetrievalConfig,
    build_retriever,
    text_encoder=lambda config: config.text_encoder,
    extras={VOCABULARY_FILE: Extra(EntityVocabulary.save, EntityVocabulary.load)},
    check=check_retriever,
)


class RetrievalRecipe(Recipe[RetrievalSettings, RetrievalConfig, Retriever]):
    """A retriever trained on one feed."""

    kind = RETRIEVER

    def __init__(self, store: Store, settings: RetrievalSettings, accelerator: Accelerator) -> None:
        super().__init__(store, settings, accelerator)
        training = store.rows("train")
        columns = {group: [store.entities[group][row] for row in training] for group in ENTITY_GROUPS}
        self.vocabulary = EntityVocabulary.from_columns(columns, settings.min_count)
        if not self.vocabulary.groups:
            raise FeedError(
                f"{store.feed} names no {', '.join(ENTITY_GROUPS)} on {settings.min_count} training products: there is "
                "no entity to learn; map columns with --column brand=…"
            )
        titles = training_titles(store)
        texts = titles + [self.vocabulary.parse(title).description for title in titles]
        self.tokenizer, image_encoder, text_encoder = make_towers(texts, settings)
        self.pretrained_text = settings.text_checkpoint is not None
        self.pretrained_image = (
            settings.image_checkpoint is not None or image_encoder.config.backbone["model_type"] == "efficientnet_lite"
        )
        config = EntityConfig(
            groups=self.vocabulary.groups,
            sizes=tuple(len(names) for names in self.vocabulary.values.values()),
            embed_dim=image_encoder.config.projection_dim,
            gated=settings.gated,
        )
        self.model = Retriever(image_encoder, text_encoder, EntityTower(config)).to(accelerator.device)
        self.examples = make_retrieval_examples(store, self.tokenizer, self.vocabulary)
        if not len(self.examples.rows("train")):
            raise FeedError(f"{store.feed} has no training product with a photo and something that is said of it")

    def asked(self, entities: Sequence[Mapping[str, str]]) -> Texts:
        """Texts of entities alone, as the model takes them."""
        return make_texts(self.tokenizer, self.vocabulary, [""] * len(entities), entities)

    def stages(self) -> Iterator[Stage]:
        """frozen (of a pretrained image tower), finetune."""
        settings, inputs = self.settings, str(self.vocabulary.values)
        model = self.model
        if self.pretrained_image and settings.frozen.epochs:
            kept = {"image_encoder.backbone": 0.0}
            config = settings.frozen.model_copy(update={"rates": kept | settings.frozen.rates})
            with self.accelerator.autocast():
                features = photo_features(model.image_encoder, self.examples)
            task = RetrievalTask("frozen", model, self.examples, settings.views, features)
            yield Stage(task, config, ("frozen", model), inputs)
            model = copy.deepcopy(model)
        if settings.finetune.epochs:
            pretrained = {
                "image_encoder.backbone": self.pretrained_image,
                "text_encoder.backbone": self.pretrained_text,
            }
            lower = {prefix: settings.tower_rate for prefix, from_elsewhere in pretrained.items() if from_elsewhere}
            config = settings.finetune.model_copy(update={"rates": lower | settings.finetune.rates})
            task = RetrievalTask("finetune", model, self.examples, settings.views, fixed_norms=self.pretrained_image)
            yield Stage(task, config, ("finetuned", model), inputs)

    def score(self, model: Retriever) -> float:
        """The mean of MRR over both directions."""
        rows = self.examples.held_out("val")
        if not len(rows):
            return float("nan")
        return float(np.mean([report.mrr for report in embed_rows(model, self.examples, rows).reports().values()]))

    def measure(self, model: Retriever) -> dict[str, Any]:
        """Recall in both directions, of all and of unseen products, and how well attributes find their products."""
        rows = self.examples.held_out("test")
        if not len(rows):
            return {}
        embedded = embed_rows(model, self.examples, rows)
        assert model.entities is not None
        entity_ids = torch.from_numpy(self.examples.feed.entity_ids[embedded.products])
        return {
            **split_figures(embedded, self.store),
            "attributes": attribute_figures(model, self, embedded),
            "gates": model.entities.mean_gates(entity_ids.to(model.logit_scale.device)),
        }

    def config(self, model: Retriever) -> RetrievalConfig:
        """Architecture of the bundle."""
        assert model.entities is not None
        return RetrievalConfig(
            image_encoder=model.image_encoder.config,
            text_encoder=model.text_encoder.config,
            entities=model.entities.config,
        )

    def counts(self) -> dict[str, Any]:
        """Examples by split, and the sizes of the vocabulary."""
        sizes = {group: len(names) for group, names in self.vocabulary.values.items()}
        return {"examples": {s: len(self.examples.rows(s)) for s in ("train", "val", "test")}, "entities": sizes}

    def extras(self) -> dict[str, Any]:
        """entities.json."""
        return {VOCABULARY_FILE: self.vocabulary}


def make_towers(texts: Sequence[str], settings: RetrievalSettings) -> tuple[Tokenizer, ImageEncoder, TextEncoder]:
    """The tokenizer and both encoders, at the beginning of training.

    Args:
        texts: the titles and descriptions of the training split.
        settings: of the recipe.

    Raises:
        FileNotFoundError, ValueError: a checkpoint folder cannot be used.
    """
    size = settings.image_size
    image_encoder = None
    if settings.image_checkpoint is not None:
        image_encoder = image_encoder_from_checkpoint(settings.image_checkpoint, settings.embed_dim, size)
    elif not settings.from_scratch:
        image_encoder = imagenet_image_encoder(*size, settings.embed_dim)
    if image_encoder is None:
        image_encoder = small_image_encoder(*size, settings.embed_dim)
    if settings.text_checkpoint is not None:
        tokenizer = load_tokenizer(settings.text_checkpoint)
    else:
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    max_length = fit_max_length(tokenizer, texts)
    set_length(tokenizer, max_length)
    width = image_encoder.config.projection_dim
    if settings.text_checkpoint is not None:
        text_encoder = text_encoder_from_checkpoint(settings.text_checkpoint, width, max_length)
    else:
        text_encoder = small_text_encoder(tokenizer.get_vocab_size(), max_length, width)
    return tokenizer, image_encoder, text_encoder


def split_figures(embedded: EmbeddedRows, store: Store) -> dict[str, Any]:
    """Recall and MRR in both directions among all products, for those unseen in title and photo, and among 100."""
    reports = embedded.reports()
    figures: dict[str, Any] = {way: report.flat() for way, report in reports.items()}
    figures["sum_of_recalls"] = sum_of_recalls(list(reports.values()))
    unseen = embedded.reports(among=store.unseen[embedded.products])
    figures |= {f"{way}, unseen": report.flat() | {"queries": report.queries} for way, report in unseen.items()}
    if len(embedded.products) > NEGATIVES:
        groups = [store.entities["sub_category"][product] for product in embedded.products]
        sides = embedded.image_embeds, embedded.text_embeds
        for way, (queries, documents) in {"image to text": sides, "text to image": sides[::-1]}.items():
            sampled = sampled_report(queries, documents, groups)
            figures[f"{way}, of 100"] = {name: vars(spread) for name, spread in sampled.items()}
    return figures


def attribute_figures(model: Retriever, recipe: RetrievalRecipe, embedded: EmbeddedRows) -> dict[str, dict[str, float]]:
    """How well a value alone ("Red") finds the products that have it: P@1, P@10 and MRR over the values."""
    figures = {}
    for group in ATTRIBUTES_ASKED:
        if group not in recipe.vocabulary.groups:
            continue
        place = recipe.vocabulary.groups.index(group)
        of_products = recipe.examples.feed.entity_ids[embedded.products, place]
        numbers = np.unique(of_products[of_products > 0])
        if not len(numbers):
            continue
        asked = recipe.asked([{group: recipe.vocabulary.values[group][number - 1]} for number in numbers])
        queries = embed_texts(model, asked, np.arange(len(numbers)))
        report = retrieval_report(
            queries, embedded.image_embeds, [np.flatnonzero(of_products == number) for number in numbers]
        )
        figures[group] = {
            "values": report.queries,
            "precision_at_1": report.precision[1],
            "precision_at_10": report.precision[10],
            "mrr": report.mrr,
        }
    return figures
