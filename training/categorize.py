"""The recipe of the categorizer: feed in, bundle out.

    read the feed -> tokenizer -> decoded examples
      -> contrastive   both encoders on (image, title) pairs
      -> head          on embeddings of the frozen encoders: the published recipe
      -> finetune      encoders and head together, from there
      -> bundle        with whichever of the two is better on the validation split

Both are measured on the test split and stand side by side in the bundle's config.json.  A feed without titles has no
pairs to start from: without a checkpoint, its encoder is trained from scratch by the last stage alone.  Every stage
keeps its own checkpoint, so a killed run goes on in the stage where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from catalogue.feed import Feed, FeedError
from catalogue.images import is_readable
from catalogue.product import Product
from catalogue.taxonomy import Taxonomy
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from models.checkpoints import image_encoder_from_checkpoint, text_encoder_from_checkpoint
from models.encoders import (
    ImageEncoder,
    TextEncoder,
    small_image_encoder,
    small_text_encoder,
)
from models.tokenizer import encode, fit_max_length, load_tokenizer, set_length, train_tokenizer
from models.two_towers import TwoTowers

from .bundle import CategorizerBundle, CategorizerConfig
from .category_tasks import CategoryEvaluator, CategoryObjective, FineTuneTask, HeadTask, ModalityDropout
from .contrastive import ContrastiveTask
from .embeddings import embed_examples, embed_names
from .examples import Examples, FeedText, prepare_examples, read_text
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
from .sentence_encoder import SentenceEncoder, packaged_sentence_encoder
from .train import TrainConfig, fit

SAMPLES = 64
SERVED_TOP_K = 20


class CategorizeSettings(BaseModel):
    """Settings of the whole recipe."""

    model_config = ConfigDict(extra="forbid")

    image_height: PositiveInt = Field(80, description="pixels images are brought to; a checkpoint brings its own")
    image_width: PositiveInt = 64
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
    dropout: ModalityDropout = ModalityDropout()
    contrastive: TrainConfig = TrainConfig(epochs=2, batch_size=128, learning_rate=1e-3)
    head: TrainConfig = TrainConfig(epochs=8, batch_size=256, learning_rate=2e-3)
    finetune: TrainConfig = TrainConfig(epochs=6, batch_size=64, learning_rate=5e-4)
    seed: NonNegativeInt = 0

    def with_seed(self) -> CategorizeSettings:
        """These settings with the one seed handed down to every stage."""
        stages = {name: getattr(self, name).model_copy(update={"seed": self.seed}) for name in STAGES}
        return self.model_copy(update=stages)

    def overridden(self, *, labels: str | None = None, epochs: int | None = None, **given: Any) -> CategorizeSettings:
        """These settings with what a command line gives; None leaves a setting as it is.

        Args:
            labels: representation of the labels.
            epochs: of fine-tuning.
            given: any other setting by name.

        Raises:
            ValueError: a value is not allowed; the message names it.
        """
        values = self.model_dump() | {name: value for name, value in given.items() if value is not None}
        if labels is not None:
            values["labels"] = asdict(self.labels) | {"representation": labels}
        if epochs is not None:
            values["finetune"] = values["finetune"] | {"epochs": epochs}
        return CategorizeSettings.model_validate(values)


STAGES = ("contrastive", "head", "finetune")


@dataclass(frozen=True)
class FeedMaterial:
    """What every stage works with: the prepared feed and what its text became."""

    text: FeedText
    taxonomy: Taxonomy
    tokenizer: Tokenizer
    examples: Examples
    samples: list[Product]

    @property
    def has_pairs(self) -> bool:
        """Whether there are products with both image and title to train the encoders on."""
        return len(self.examples.paired_rows("train")) > 0


def train_categorizer(
    feed: Feed, settings: CategorizeSettings, folder: Path, accelerator: Accelerator
) -> CategorizerBundle:
    """Trains a categorizer on a feed.

    Args:
        feed: products; those of split "train" are learnt from, "val" chooses the recipe, "test" is only measured.
        settings: see `CategorizeSettings`.
        folder: of the run: prepared examples, checkpoints, TensorBoard files. Given again, the run is resumed.
        accelerator: from `training.train.make_accelerator`.

    Returns:
        The bundle, not yet written.

    Raises:
        catalogue.feed.FeedError: the feed is broken, or has no categories or no training products.
    """
    settings = settings.with_seed()
    encoders, material = train_encoders(feed, settings, folder, accelerator)
    examples = material.examples
    train_rows, val_rows, test_rows = (examples.rows(split) for split in ("train", "val", "test"))
    if not len(train_rows):
        raise FeedError(f"{feed.path} has no product with a category in the training split")

    image_encoder, text_encoder = encoders.image_encoder, encoders.text_encoder
    paths = material.taxonomy.paths
    encode_names = name_encoder(material, text_encoder, settings.label_encoder)
    table = neighbours_of_names(paths, encode_names, k=min(NEIGHBOURS, len(paths) - 1), naming="leaf")
    codes = feature_codes(paths, encode_names, settings.codes) if settings.labels.has_codes else None
    tree = taxonomy_table(paths)
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(table.ids[:, 1:], tree))
    objective = CategoryObjective(
        table, settings.labels, gamma=settings.gamma, kl_weight=settings.kl_weight, codes=codes
    )

    head_config = CategoryHeadConfig(
        embed_dim=image_encoder.config.projection_dim,
        num_classes=len(paths),
        num_features=None if codes is None else len(codes.features),
    )
    torch.manual_seed(settings.seed)  # the same head, whether the stage before was trained just now or resumed
    model = Categorizer(image_encoder, text_encoder, CategoryHead(head_config, None if codes is None else codes.codes))
    candidates: dict[str, Categorizer] = {}
    scores: dict[str, dict[str, float]] = {}
    if material.has_pairs or settings.image_checkpoint is not None:
        validation = embed_examples(image_encoder, text_encoder, examples, val_rows)
        training = embed_examples(image_encoder, text_encoder, examples, train_rows)
        head_task = HeadTask(model.head, training, validation, objective, evaluator, settings.dropout)
        scores["frozen"] = fit(head_task, settings.head, folder, accelerator)
        candidates["frozen"] = model
    elif not settings.finetune.epochs:
        raise FeedError(f"{feed.path} has no titles to train encoders with: fine-tune them, or give a checkpoint")
    if settings.finetune.epochs:
        tuned = copy.deepcopy(model)
        task = FineTuneTask(tuned, examples, objective, evaluator, settings.dropout)
        scores["finetuned"] = fit(task, settings.finetune, folder, accelerator)
        candidates["finetuned"] = tuned

    # The mean of top-1 over the three ways to ask: a model that is good only with both modalities is no good.
    served = max(
        candidates, key=lambda name: np.mean([value for key, value in scores[name].items() if key.endswith("top_1")])
    )
    metrics: dict[str, Any] = {"served": served}
    for name, candidate in candidates.items():
        held_out = embed_examples(candidate.image_encoder, candidate.text_encoder, examples, test_rows)
        reports = evaluator.reports(candidate.head, held_out)
        metrics[name] = {modality: asdict(report) for modality, report in reports.items()}

    config = CategorizerConfig(
        image_encoder=image_encoder.config,
        text_encoder=text_encoder.config,
        head=head_config,
        top_k=min(SERVED_TOP_K, head_config.num_classes),
        training={
            "feed": feed.path.name,
            "products": len(material.text.titles),
            "examples": {"train": len(train_rows), "val": len(val_rows), "test": len(test_rows)},
            "settings": settings.model_dump(mode="json"),
        },
        metrics=metrics,
    )
    return CategorizerBundle(
        config,
        candidates[served].cpu(),
        material.tokenizer,
        material.taxonomy,
        soft_labels(table, settings.labels),
        material.samples,
    )


def train_encoders(
    feed: Feed, settings: CategorizeSettings, folder: Path, accelerator: Accelerator
) -> tuple[TwoTowers[ImageEncoder], FeedMaterial]:
    """Prepares a feed and trains both encoders contrastively on it: the first half of the recipe.

    Arguments and errors as in `train_categorizer`.
    """
    torch.manual_seed(settings.seed)
    encoders, material = _encoders_and_material(feed, settings, folder, accelerator)
    if material.has_pairs:
        fit(ContrastiveTask(encoders, material.examples), settings.contrastive, folder, accelerator)
    return encoders, material


def soft_labels(table: NeighbourTable, scheme: LabelScheme) -> NeighbourTable:
    """The soft labels that a served answer is compared with (`neighbour_kl`): what the network ended up training on.

    Of targets that know no neighbours, or (curriculum) no longer do, nearness cannot be read; α = 0.1 shared by
    similarity takes their place.
    """
    if scheme.representation in ("neighbour_uniform", "neighbour_semantic"):
        return scheme.targets(table)
    return neighbour_semantic(table, "share")


def name_encoder(material: FeedMaterial, text_encoder: TextEncoder, folder: Path | None) -> NameEncoder:
    """What embeds category names: the sentence encoder in `folder`, else the packaged one, else the text encoder.

    Raises:
        FileNotFoundError: `folder` holds no sentence encoder.
        catalogue.feed.FeedError: there is none, and no titles for the text encoder to have learnt from.
    """
    folder = folder or packaged_sentence_encoder()
    if folder is not None:
        return SentenceEncoder(folder)
    if not material.has_pairs:
        raise FeedError("the feed has no titles to learn the names of categories from; give a label_encoder")
    return lambda names: embed_names(text_encoder, *encode(material.tokenizer, names))


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


def _encoders_and_material(
    feed: Feed, settings: CategorizeSettings, folder: Path, accelerator: Accelerator
) -> tuple[TwoTowers[ImageEncoder], FeedMaterial]:
    text = read_text(feed)
    categories = {path for path in text.categories if path}
    if len(categories) < 2:
        raise FeedError(f"{feed.path} names {len(categories)} categories; a categorizer needs at least 2")
    taxonomy = Taxonomy.from_paths(categories)

    if settings.text_checkpoint is not None:
        tokenizer = load_tokenizer(settings.text_checkpoint)
    else:
        tokenizer = train_tokenizer(text.training_titles(), settings.vocab_size)
    max_length = fit_max_length(tokenizer, text.training_titles())
    set_length(tokenizer, max_length)

    image_encoder: ImageEncoder
    if settings.image_checkpoint is not None:
        image_encoder = image_encoder_from_checkpoint(settings.image_checkpoint, settings.embed_dim)
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

    with accelerator.main_process_first():
        examples = prepare_examples(
            feed,
            text,
            taxonomy,
            tokenizer,
            image_encoder.config.height,
            image_encoder.config.width,
            folder / "examples",
        )
    material = FeedMaterial(text, taxonomy, tokenizer, examples, held_out_samples(feed))
    return TwoTowers(image_encoder, text_encoder), material


def held_out_samples(feed: Feed) -> list[Product]:
    """The first held-out products, of those with most to show; the bundle carries them for parity and readiness.

    Products whose image cannot be read are none: the server refuses them.
    """
    whole: list[Product] = []
    partial: list[Product] = []
    for product in feed:
        if product.split != "train" and (product.images or product.title) and all(map(is_readable, product.images)):
            (whole if product.images and product.title else partial).append(product)
            if len(whole) == SAMPLES:
                break
            del partial[SAMPLES:]  # enough, should there be no whole ones
    samples = (whole or partial)[:SAMPLES]
    if not samples:
        raise FeedError(f"{feed.path} has no held-out product with an image or a title")
    return samples
