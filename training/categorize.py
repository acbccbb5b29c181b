"""The recipe of the categorizer: feed in, bundle out.

    store -> tokenizer, label neighbours, examples
      -> contrastive   both encoders on (image, title) pairs
      -> head          on embeddings of the frozen encoders: the published recipe
      -> finetune      encoders and head together, from there
      -> bundle        with whichever of the two is better on the validation split

An image encoder that was trained on ImageNet, the default where its package is installed, goes to the last stage as it
is: what the first two would cost is better spent there.  So does one of a feed without titles, which has no pairs.
Each candidate gets its temperatures and thresholds on the validation split; all are measured on the test split and
stand side by side in the bundle's config.json.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, NonNegativeFloat, PositiveInt
from safetensors.torch import save
from tokenizers import Tokenizer

from catalogue.class_report import ClassReport
from catalogue.feed import FeedError
from catalogue.product import PATH_SEPARATOR, SPLITS, Split
from catalogue.store import Store
from catalogue.taxonomy import Taxonomy
from models.categorizer import Categorizer
from models.category_head import WAYS, CategoryHead, CategoryHeadConfig
from models.checkpoints import image_encoder_from_checkpoint, imagenet_image_encoder, text_encoder_from_checkpoint
from models.efficientnet_lite import PACKAGE, imagenet_weights
from models.encoders import (
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    small_image_encoder,
    small_text_encoder,
)
from models.tokenizer import encode, fit_max_length, load_tokenizer, set_length, train_tokenizer
from models.two_towers import TwoTowers

from .bundle import Bundle, BundleConfig, BundleKind, Extra
from .calibration import answer_reports, calibrate_head
from .category_tasks import (
    CategoryEvaluator,
    CategoryObjective,
    ContrastiveTask,
    FineTuneTask,
    HeadTask,
    can_be_asked,
)
from .embeddings import Embeddings, embed_examples, embed_names
from .examples import Examples, make_examples, training_titles
from .feature_codes import FeatureCodes, codes_from_embeddings, codes_from_taxonomy
from .labels import (
    NEIGHBOURS,
    LabelScheme,
    NameEncoder,
    NeighbourDivergence,
    NeighbourTable,
    class_names,
    neighbour_semantic,
    neighbours_of_names,
)
from .metrics import CategoryMetrics, taxonomy_table
from .recipe import Recipe, Stage
from .sentence_encoder import SentenceEncoder, packaged_sentence_encoder
from .settings import Settings, TrainConfig

SERVED_TOP_K = 20
PRETRAINED_SIZE = (112, 84)  # small, and still some patches of a network that was trained on 224


class CategorizeSettings(Settings):
    """Settings of the whole recipe."""

    aliases: ClassVar = {"epochs": "finetune.epochs", "labels": "labels.representation"}

    embed_dim: PositiveInt = Field(256, description="width of the embeddings; a CLIP checkpoint brings its own")
    vocab_size: PositiveInt = Field(8000, description="tokens of the tokenizer trained on the feed's titles")
    image_tower: Literal["imagenet", "scratch"] = Field(
        "imagenet", description="image encoder: EfficientNet-Lite0 where its package is installed, or a small ResNet"
    )
    image_checkpoint: Path | None = Field(None, description="Hugging Face folder with the image encoder instead")
    text_checkpoint: Path | None = Field(None, description="Hugging Face folder to start the text encoder from")
    label_encoder: Path | None = Field(
        None,
        description="sentence encoder folder that embeds category names; else the packaged one where it is installed, "
        "else the trained text encoder",
    )
    codes: Literal["names", "taxonomy"] | Path = Field(
        "names", description="binary codes: hashed name embeddings, the taxonomy's nodes, or a FeatureCodes file"
    )
    # benchmarks/results/labels.md compares them: the curriculum keeps top-1 and top-5 and has near misses for mistakes.
    labels: LabelScheme = Field(LabelScheme("curriculum"), description="target distribution of the KL term")
    kl_weight: NonNegativeFloat = Field(1.0, description="λ of the KL term; 0 is focal loss alone, the baseline")
    gamma: NonNegativeFloat = Field(2.0, description="focusing exponent of the focal loss")
    precision: float = Field(0.99, gt=0, lt=1, description="share of right answers among those that need no person")
    contrastive: TrainConfig = TrainConfig(epochs=2, batch_size=128, learning_rate=1e-3)
    head: TrainConfig = TrainConfig(epochs=8, batch_size=256, learning_rate=2e-3)
    finetune: TrainConfig = TrainConfig(epochs=6, batch_size=64, learning_rate=1e-3)
    imagenet: TrainConfig = Field(
        TrainConfig(epochs=3, batch_size=64, learning_rate=1e-3),
        description="of the image encoder from ImageNet, in place of the three stages; no epochs: those after all",
    )

    @property
    def from_imagenet(self) -> bool:
        """Whether the image encoder is the one from ImageNet."""
        return self.image_tower == "imagenet" and self.image_checkpoint is None and imagenet_weights() is not None

    @property
    def last(self) -> TrainConfig:
        """The training of encoders and head together."""
        return self.imagenet if self.from_imagenet and self.imagenet.epochs else self.finetune

    @property
    def suitable_size(self) -> tuple[int, int]:
        """Height and width of images where none is set."""
        return PRETRAINED_SIZE if self.from_imagenet or self.image_checkpoint else super().suitable_size

    def overridden(self, given: Mapping[str, Any]) -> Self:
        """As of all settings; `epochs` are those of the last stage, whichever it is."""
        last = {"imagenet.epochs": given["epochs"]} if "epochs" in given else {}
        return super().overridden({**given, **last})


class CategorizerConfig(BundleConfig):
    """`config.json` of a categorizer's bundle."""

    system: Literal["categorize"] = "categorize"
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    head: CategoryHeadConfig
    top_k: PositiveInt = Field(description="categories that a served answer lists, most probable first")


CategorizerBundle = Bundle[CategorizerConfig, Categorizer]


def build_categorizer(config: CategorizerConfig) -> Categorizer:
    """A categorizer of the given architecture with random weights."""
    return Categorizer(ImageEncoder(config.image_encoder), TextEncoder(config.text_encoder), CategoryHead(config.head))


def save_labels(taxonomy: Taxonomy, path: Path) -> None:
    """Writes labels.txt: one category path a line; line i is class i."""
    path.write_text("".join(f"{PATH_SEPARATOR.join(line)}\n" for line in taxonomy.paths), encoding="utf-8")


def load_labels(path: Path) -> Taxonomy:
    """Reads labels.txt.

    Raises:
        ValueError: the labels are not sorted, or one is repeated.
    """
    labels = path.read_text(encoding="utf-8").splitlines()
    taxonomy = Taxonomy.from_paths([tuple(label.split(PATH_SEPARATOR)) for label in labels])
    if [PATH_SEPARATOR.join(line) for line in taxonomy.paths] != labels:
        raise ValueError("labels are not in sorted order, or one is repeated")
    return taxonomy


def check_categorizer(bundle: CategorizerBundle) -> None:
    """Raises ValueError where labels, neighbours and head do not fit each other."""
    labels, rows = len(bundle.extras["labels.txt"].paths), bundle.extras["neighbours.safetensors"].classes
    if labels != bundle.config.head.num_classes:
        raise ValueError(f"labels.txt has {labels} labels, the head in config.json {bundle.config.head.num_classes}")
    if rows != labels:
        raise ValueError(f"neighbours.safetensors has {rows} rows for {labels} labels")
    if bundle.config.top_k > labels:
        raise ValueError(f"config.json: top_k is {bundle.config.top_k}, but there are {labels} classes")


CATEGORIZER = BundleKind(
    CategorizerConfig,
    build_categorizer,
    text_encoder=lambda config: config.text_encoder,
    extras={
        "labels.txt": Extra(save_labels, load_labels),
        "neighbours.safetensors": Extra(NeighbourTable.save, NeighbourTable.load),
    },
    check=check_categorizer,
)


class CategorizeRecipe(Recipe[CategorizeSettings, CategorizerConfig, Categorizer]):
    """A categorizer trained on one feed."""

    kind = CATEGORIZER

    def __init__(self, store: Store, settings: CategorizeSettings, accelerator: Accelerator) -> None:
        super().__init__(store, settings, accelerator)
        categories = {path for path in store.categories if path}
        if len(categories) < 2:
            raise FeedError(f"{store.feed} names {len(categories)} categories; a categorizer needs at least 2")
        self.taxonomy = Taxonomy.from_paths(categories)
        self.notes += ClassReport.of(store.categories, [SPLITS[split] for split in store.splits]).warnings()
        self.tokenizer, self.encoders = make_encoders(store, settings)
        self.encoders.to(accelerator.device)
        self.examples = make_examples(store, self.tokenizer, self.taxonomy)
        if not len(self.examples.rows("train")):
            raise FeedError(f"{store.feed} has no product with a category in the training split")
        self.has_pairs = len(self.examples.paired_rows("train")) > 0
        self.ways = ways_of(self.examples)
        self.embedded: tuple[Categorizer, Split, Embeddings] | None = None
        if settings.image_tower == "imagenet" and settings.image_checkpoint is None and not settings.from_imagenet:
            self.notes.append(f"the package {PACKAGE} is not installed: the image encoder is trained from scratch")
        if not (self.has_pairs or settings.image_checkpoint or settings.last.epochs):
            raise FeedError(f"{store.feed} has no titles to train encoders with: fine-tune them, or give a checkpoint")

    def stages(self) -> Iterator[Stage]:
        """contrastive, head, finetune; the last alone where the encoder is from ImageNet or there are no pairs."""
        settings, examples = self.settings, self.examples
        image_encoder, text_encoder = self.encoders.image_encoder, self.encoders.text_encoder
        last = settings.last
        end_to_end = last is settings.imagenet
        if self.has_pairs and not end_to_end:
            yield Stage(ContrastiveTask(self.encoders, examples), settings.contrastive)

        self.prepare_labels()
        codes = self.codes
        config = CategoryHeadConfig(
            embed_dim=image_encoder.config.projection_dim,
            num_classes=len(self.taxonomy.paths),
            num_features=None if codes is None else len(codes.features),
        )
        head = CategoryHead(config, None if codes is None else codes.codes)
        model = Categorizer(image_encoder, text_encoder, head).to(self.accelerator.device)
        if (self.has_pairs or settings.image_checkpoint is not None) and not end_to_end:
            train, validation = (
                embed_examples(image_encoder, text_encoder, examples, examples.rows(split))
                for split in ("train", "val")
            )
            task = HeadTask(model.head, train, validation, self.objective, self.evaluator, self.ways)
            yield Stage(task, settings.head, ("frozen", model), inputs=self.label_inputs)
        if last.epochs:
            tuned = copy.deepcopy(model)
            whole = FineTuneTask(tuned, examples, self.objective, self.evaluator, self.ways)
            yield Stage(whole, last, ("finetuned", tuned), inputs=self.label_inputs)

    def prepare_labels(self) -> None:
        """Label neighbours, codes and what is made of them; names may be embedded by the text encoder just trained."""
        paths, settings = self.taxonomy.paths, self.settings
        encode_names = self.name_encoder()
        self.table = neighbours_of_names(paths, encode_names, k=min(NEIGHBOURS, len(paths) - 1), naming="leaf")
        self.codes = feature_codes(paths, encode_names, settings.codes) if settings.labels.has_codes else None
        tree = taxonomy_table(paths)
        self.evaluator = CategoryEvaluator(lambda: CategoryMetrics(self.table.ids[:, 1:], tree))
        self.objective = CategoryObjective(
            self.table, settings.labels, gamma=settings.gamma, kl_weight=settings.kl_weight, codes=self.codes
        )
        tensors = {"ids": self.table.ids, "weights": self.table.weights}
        if self.codes is not None:
            tensors["codes"] = self.codes.codes
        self.label_inputs = save({name: tensor.contiguous() for name, tensor in tensors.items()}).hex()

    def name_encoder(self) -> NameEncoder:
        """What embeds category names: the sentence encoder of the settings, else the packaged one, else the text
        encoder.

        Raises:
            FileNotFoundError: the settings name a folder without a sentence encoder.
            FeedError: there is none, and no titles for the text encoder to have learnt from.
        """
        folder = self.settings.label_encoder or packaged_sentence_encoder()
        if folder is not None:
            return SentenceEncoder(folder)
        if not self.has_pairs:
            raise FeedError("the feed has no titles to learn the names of categories from; give a label_encoder")
        return lambda names: embed_names(self.encoders.text_encoder, *encode(self.tokenizer, names))

    def calibrate(self, model: Categorizer) -> None:
        """A temperature and a threshold for each way to ask."""
        calibrate_head(model.head, self.embed(model, "val"), self.settings.precision)

    def score(self, model: Categorizer) -> float:
        """The mean of top-1 over the three ways to ask: a model that is good only with both is no good."""
        reports = self.evaluator.reports(model.head, self.embed(model, "val")).values()
        return float(np.mean([report.top_1 for report in reports])) if reports else float("nan")

    def measure(self, model: Categorizer) -> dict[str, Any]:
        """Reports of each way to ask, over all test products and over those unseen in title and photo."""
        embeddings = self.embed(model, "test")
        unseen = self.store.unseen[self.examples.product[self.examples.rows("test")]]
        divergence = NeighbourDivergence(soft_labels(self.table, self.settings.labels))
        measured: dict[str, Any] = {}
        for suffix, among in (("", None), (", unseen", unseen)):
            figures = self.evaluator.reports(model.head, embeddings, among)
            answers = answer_reports(model.head, embeddings, divergence, among)
            measured |= {f"{way}{suffix}": asdict(figures[way]) | asdict(answers[way]) for way in figures}
        return measured

    def embed(self, model: Categorizer, split: Split) -> Embeddings:
        """Embeddings of a split's examples by a model that is trained; the last ones are kept."""
        if self.embedded is None or self.embedded[:2] != (model, split):
            rows = self.examples.rows(split)
            embeddings = embed_examples(model.image_encoder, model.text_encoder, self.examples, rows)
            self.embedded = model, split, embeddings
        return self.embedded[2]

    def config(self, model: Categorizer) -> CategorizerConfig:
        """Architecture of the bundle."""
        return CategorizerConfig(
            image_encoder=model.image_encoder.config,
            text_encoder=model.text_encoder.config,
            head=model.head.config,
            top_k=min(SERVED_TOP_K, model.head.config.num_classes),
        )

    def counts(self) -> dict[str, Any]:
        """Examples by split."""
        return {"examples": {split: len(self.examples.rows(split)) for split in ("train", "val", "test")}}

    def extras(self) -> dict[str, Any]:
        """labels.txt and neighbours.safetensors."""
        return {
            "labels.txt": self.taxonomy,
            "neighbours.safetensors": soft_labels(self.table, self.settings.labels),
        }


def make_encoders(store: Store, settings: CategorizeSettings) -> tuple[Tokenizer, TwoTowers[ImageEncoder]]:
    """The tokenizer and both encoders, from scratch or from checkpoints, at the beginning of training.

    Raises:
        ValueError: the checkpoints embed to different widths.
    """
    titles = training_titles(store)
    if settings.text_checkpoint is not None:
        tokenizer = load_tokenizer(settings.text_checkpoint)
    else:
        tokenizer = train_tokenizer(titles, settings.vocab_size)
    max_length = fit_max_length(tokenizer, titles)
    set_length(tokenizer, max_length)

    image_encoder = make_image_encoder(settings)
    width = image_encoder.config.projection_dim
    if settings.text_checkpoint is not None:
        text_encoder = text_encoder_from_checkpoint(settings.text_checkpoint, width, max_length)
    else:
        text_encoder = small_text_encoder(tokenizer.get_vocab_size(), max_length, width)
    if text_encoder.config.projection_dim != width:
        raise ValueError(
            f"the image checkpoint embeds to {width} numbers, the text checkpoint to "
            f"{text_encoder.config.projection_dim}; take both from one model, or set embed_dim to match"
        )
    return tokenizer, TwoTowers(image_encoder, text_encoder)


def make_image_encoder(settings: CategorizeSettings) -> ImageEncoder:
    """The image encoder at the beginning of training: of a checkpoint folder, from ImageNet, or from scratch."""
    size, width = settings.image_size, settings.embed_dim
    if settings.image_checkpoint is not None:
        return image_encoder_from_checkpoint(settings.image_checkpoint, width, size)
    pretrained = imagenet_image_encoder(*size, width) if settings.from_imagenet else None
    return pretrained or small_image_encoder(*size, width)


def ways_of(examples: Examples) -> list[str]:
    """The ways to ask that training examples have what is needed for."""
    rows = examples.rows("train")
    image_present = torch.from_numpy(examples.image_present[rows])[:, None]
    text_present = torch.from_numpy(examples.text_present[examples.product[rows]])[:, None]
    return [way for way in WAYS if can_be_asked(way, image_present, text_present).any()]


def soft_labels(table: NeighbourTable, scheme: LabelScheme) -> NeighbourTable:
    """The soft labels that a served answer is compared with (`neighbour_kl`): what the network ended up training on.

    Of targets that know no neighbours, or (curriculum) no longer do, nearness cannot be read; α = 0.1 shared by
    similarity takes their place.
    """
    if scheme.representation in ("neighbour_uniform", "neighbour_semantic"):
        return scheme.targets(table)
    return neighbour_semantic(table, "share")


def feature_codes(
    paths: Sequence[tuple[str, ...]], encode_names: NameEncoder, source: Literal["names", "taxonomy"] | Path
) -> FeatureCodes:
    """The binary codes of the classes.

    Args:
        paths: of the classes.
        encode_names: used for "names", hashed to twice as many bits as tell the classes apart.
        source: see `CategorizeSettings.codes`.

    Raises:
        FileNotFoundError, ValueError: no such file, it holds no codes, or not one a class.
    """
    if source == "taxonomy":
        return codes_from_taxonomy(paths)
    if source == "names":
        embeddings = encode_names(class_names(paths, "leaf"))
        bits = 2 * (len(paths) - 1).bit_length()
        return codes_from_embeddings(embeddings, min(bits, embeddings.shape[1], len(paths) - 1))
    codes = FeatureCodes.load(Path(source))
    if codes.classes != len(paths):
        raise ValueError(f"{source} has codes of {codes.classes} classes, the feed {len(paths)}")
    return codes
