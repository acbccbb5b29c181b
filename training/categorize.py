"""The recipe of the categorizer: feed in, bundle out.

    store -> tokenizer, label neighbours, examples
      -> contrastive   both encoders on (image, title) pairs
      -> head          on embeddings of the frozen encoders: the published recipe
      -> finetune      encoders and head together, from there
      -> bundle        with whichever of the two is better on the validation split

Both are measured on the test split and stand side by side in the bundle's config.json.  A feed without titles has no
pairs to start from: without a checkpoint, its encoder is trained from scratch by the last stage alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from accelerate import Accelerator
from pydantic import Field, NonNegativeFloat, PositiveInt
from safetensors.torch import save
from tokenizers import Tokenizer

from catalogue.class_report import ClassReport
from catalogue.feed import FeedError
from catalogue.product import PATH_SEPARATOR, SPLITS
from catalogue.store import Store
from catalogue.taxonomy import Taxonomy
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from models.checkpoints import image_encoder_from_checkpoint, text_encoder_from_checkpoint
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
from .category_tasks import (
    CategoryEvaluator,
    CategoryObjective,
    ContrastiveTask,
    FineTuneTask,
    HeadTask,
    ModalityDropout,
)
from .embeddings import embed_examples, embed_names
from .examples import make_examples, training_titles
from .feature_codes import FeatureCodes, codes_from_embeddings, codes_from_taxonomy
from .labels import (
    NEIGHBOURS,
    LabelScheme,
    NameEncoder,
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


class CategorizeSettings(Settings):
    """Settings of the whole recipe."""

    aliases: ClassVar = {"epochs": "finetune.epochs", "labels": "labels.representation"}

    embed_dim: PositiveInt = Field(256, description="width of the embeddings; a CLIP checkpoint brings its own")
    vocab_size: PositiveInt = Field(8000, description="tokens of the tokenizer trained on the feed's titles")
    image_checkpoint: Path | None = Field(None, description="Hugging Face folder to start the image encoder from")
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
    dropout: ModalityDropout = Field(ModalityDropout(), description="shares of rows that lose a modality in training")
    contrastive: TrainConfig = TrainConfig(epochs=2, batch_size=128, learning_rate=1e-3)
    head: TrainConfig = TrainConfig(epochs=8, batch_size=256, learning_rate=2e-3)
    finetune: TrainConfig = TrainConfig(epochs=6, batch_size=64, learning_rate=5e-4)


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
        if not (self.has_pairs or settings.image_checkpoint or settings.finetune.epochs):
            raise FeedError(f"{store.feed} has no titles to train encoders with: fine-tune them, or give a checkpoint")

    def stages(self) -> Iterator[Stage]:
        """contrastive, head, finetune."""
        settings, examples = self.settings, self.examples
        image_encoder, text_encoder = self.encoders.image_encoder, self.encoders.text_encoder
        if self.has_pairs:
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
        if self.has_pairs or settings.image_checkpoint is not None:
            train, validation = (
                embed_examples(image_encoder, text_encoder, examples, examples.rows(split))
                for split in ("train", "val")
            )
            task = HeadTask(model.head, train, validation, self.objective, self.evaluator, settings.dropout)
            yield Stage(task, settings.head, ("frozen", model), inputs=self.label_inputs)
        if settings.finetune.epochs:
            tuned = copy.deepcopy(model)
            whole = FineTuneTask(tuned, examples, self.objective, self.evaluator, settings.dropout)
            yield Stage(whole, settings.finetune, ("finetuned", tuned), inputs=self.label_inputs)

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

    def score(self, model: Categorizer) -> float:
        """The mean of top-1 over the three ways to ask: a model that is good only with both is no good."""
        embeddings = embed_examples(model.image_encoder, model.text_encoder, self.examples, self.examples.rows("val"))
        reports = self.evaluator.reports(model.head, embeddings).values()
        return float(np.mean([report.top_1 for report in reports])) if reports else float("nan")

    def measure(self, model: Categorizer) -> dict[str, Any]:
        """A report for each way to ask, over all test products and over those unseen in title and photo."""
        rows = self.examples.rows("test")
        embeddings = embed_examples(model.image_encoder, model.text_encoder, self.examples, rows)
        unseen = self.store.unseen[self.examples.product[rows]]
        reports = {name: asdict(report) for name, report in self.evaluator.reports(model.head, embeddings).items()}
        of_unseen = self.evaluator.reports(model.head, embeddings, among=unseen)
        return reports | {f"{name}, unseen": asdict(report) for name, report in of_unseen.items()}

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

    image_encoder: ImageEncoder
    if settings.image_checkpoint is not None:
        image_encoder = image_encoder_from_checkpoint(
            settings.image_checkpoint, settings.embed_dim, (settings.image_height, settings.image_width)
        )
    else:
        image_encoder = small_image_encoder(settings.image_height, settings.image_width, settings.embed_dim)
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
