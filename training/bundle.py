"""The bundle: one folder with all that export needs, and nothing that needs a pickle.

    config.json               architecture, served top-k, how it was trained, what it reached on held-out data
    model.safetensors         weights of the whole `Categorizer`
    tokenizer.json            of the `tokenizers` library
    labels.txt                one category path a line; line i is class i
    neighbours.safetensors    the label-neighbour table
    samples.parquet           a few real products (feed schema): parity checks, warm-up and readiness run on them

Written whole or not at all.  Reading checks every file against the others and names the one that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from catalogue.atomic import atomic_folder
from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import PATH_SEPARATOR, Product
from catalogue.taxonomy import Taxonomy
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from models.encoders import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig
from models.tokenizer import load_tokenizer, set_length

from .labels import NeighbourTable

FORMAT_VERSION = 1


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file and the mismatch."""


class CategorizerConfig(BaseModel):
    """`config.json` of a categorizer's bundle."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    system: Literal["categorize"] = "categorize"
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    head: CategoryHeadConfig
    top_k: PositiveInt = Field(description="categories that a served answer lists, most probable first")
    training: dict[str, Any] = Field(default_factory=dict, description="settings of the run, for the record")
    metrics: dict[str, Any] = Field(default_factory=dict, description="held-out figures by recipe and modality")


@dataclass(frozen=True)
class CategorizerBundle:
    """A trained categorizer with everything that belongs to it."""

    config: CategorizerConfig
    model: Categorizer
    tokenizer: Tokenizer  # of fixed length config.text_encoder.max_length
    taxonomy: Taxonomy
    neighbours: NeighbourTable
    samples: Sequence[Product]


def build_categorizer(config: CategorizerConfig) -> Categorizer:
    """A categorizer of the given architecture with random weights."""
    return Categorizer(ImageEncoder(config.image_encoder), TextEncoder(config.text_encoder), CategoryHead(config.head))


def system_of(folder: Path) -> str:
    """Which system a bundle belongs to.

    Raises:
        BundleError: `folder` is no bundle of this release.
    """
    return str(_read_config(folder).get("system"))


def save_bundle(folder: Path, bundle: CategorizerBundle) -> None:
    """Writes a bundle to `folder`, replacing the one that is there only when the new one is complete."""
    with atomic_folder(folder) as aside:
        (aside / "config.json").write_text(bundle.config.model_dump_json(indent=2) + "\n")
        save_weights(aside, bundle.model)
        bundle.tokenizer.save(str(aside / "tokenizer.json"))
        (aside / "labels.txt").write_text(
            "".join(f"{PATH_SEPARATOR.join(path)}\n" for path in bundle.taxonomy.paths), encoding="utf-8"
        )
        bundle.neighbours.save(aside / "neighbours.safetensors")
        write_feed(aside / "samples.parquet", bundle.samples)


def load_bundle(folder: Path) -> CategorizerBundle:
    """Reads and checks a bundle.

    Raises:
        BundleError: a file is missing, corrupt, of a newer format, or does not fit the others.
    """
    config = load_config(folder, CategorizerConfig)
    tokenizer = load_text_tokenizer(folder, config.text_encoder)

    labels = bundle_file(folder, "labels.txt").read_text(encoding="utf-8").splitlines()
    if len(labels) != config.head.num_classes:
        raise BundleError(
            f"{folder / 'labels.txt'} has {len(labels)} labels, "
            f"the head in config.json {config.head.num_classes} classes"
        )
    if config.top_k > len(labels):
        raise BundleError(f"{folder / 'config.json'}: top_k is {config.top_k}, but there are {len(labels)} classes")
    taxonomy = Taxonomy.from_paths([tuple(label.split(PATH_SEPARATOR)) for label in labels])
    if [PATH_SEPARATOR.join(path) for path in taxonomy.paths] != labels:
        raise BundleError(f"{folder / 'labels.txt'} is not in sorted order or repeats a label")

    model = build_categorizer(config)
    load_weights(folder, model)
    try:
        neighbours = NeighbourTable.load(bundle_file(folder, "neighbours.safetensors"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{folder / 'neighbours.safetensors'}: {error}") from error
    if len(neighbours.ids) != len(labels):
        raise BundleError(
            f"{folder / 'neighbours.safetensors'} has {len(neighbours.ids)} rows for {len(labels)} labels"
        )
    samples = load_samples(folder)
    return CategorizerBundle(config, model.eval(), tokenizer, taxonomy, neighbours, samples)


# What the bundles of all systems have in common.

Config = TypeVar("Config", bound=BaseModel)


def save_weights(folder: Path, model: nn.Module) -> None:
    """Writes `model.safetensors`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def load_weights(folder: Path, model: nn.Module) -> None:
    """Reads `model.safetensors` into a model.

    Raises:
        BundleError: the file is missing, corrupt, or holds another model.
    """
    path = bundle_file(folder, "model.safetensors")
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{path} does not hold the model of config.json: {error}") from error


def load_text_tokenizer(folder: Path, encoder: TextEncoderConfig) -> Tokenizer:
    """Reads `tokenizer.json`, set to the length that a text encoder takes.

    Raises:
        BundleError: the file is missing or corrupt, or has more tokens than the encoder.
    """
    try:
        tokenizer = set_length(load_tokenizer(folder), encoder.max_length)
    except Exception as error:  # the tokenizers library raises plain Exception for a file it cannot parse
        raise BundleError(f"{folder / 'tokenizer.json'}: {error}") from error
    vocabulary = encoder.backbone["vocab_size"]
    if tokenizer.get_vocab_size() > vocabulary:
        raise BundleError(
            f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens, "
            f"the text encoder in config.json only {vocabulary}"
        )
    return tokenizer


def load_samples(folder: Path) -> tuple[Product, ...]:
    """Reads `samples.parquet`.

    Raises:
        BundleError: the file is missing, corrupt or empty.
    """
    try:
        samples = tuple(open_feed(bundle_file(folder, "samples.parquet")))
    except FeedError as error:
        raise BundleError(str(error)) from error
    if not samples:
        raise BundleError(f"{folder / 'samples.parquet'} holds no product")
    return samples


def load_config(folder: Path, kind: type[Config]) -> Config:
    """Reads `config.json` as the configuration of one system.

    Raises:
        BundleError: the file is missing, corrupt, of a newer format, or of another system.
    """
    content = _read_config(folder)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{folder / 'config.json'}: {error}") from error


def bundle_file(folder: Path, name: str) -> Path:
    """A file of a bundle.

    Raises:
        BundleError: it is missing.
    """
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: {name} is missing")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    path = bundle_file(folder, "config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format_version is {version!r}, this release of Shelfwise reads {FORMAT_VERSION}")
    return content
