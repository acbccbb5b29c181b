"""The bundle: one folder with all that export needs, and nothing that needs a pickle; the same for every system.

    config.json               system, architecture, how it was trained, what it reached on held-out data
    model.safetensors         weights of the whole model
    tokenizer.json            of the `tokenizers` library
    samples.parquet           a few real products (feed schema): parity checks, warm-up and readiness run on them
    …                         what else a system needs (`BundleKind.extras`): a categorizer's labels.txt, say

Written whole or not at all.  Reading checks every file against the others and names the one that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from catalogue.atomic import atomic_folder
from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import Product
from models.encoders import TextEncoderConfig
from models.tokenizer import load_tokenizer, set_length

FORMAT_VERSION = 2


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file and the mismatch."""


class BundleConfig(BaseModel):
    """What `config.json` has in every bundle; a system adds its architecture."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    system: str
    training: dict[str, Any] = Field(
        default_factory=dict, description="the run: feed, counts, settings, for the record"
    )
    metrics: dict[str, Any] = Field(default_factory=dict, description="which candidate is served, held-out figures")


Config = TypeVar("Config", bound=BundleConfig)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Bundle(Generic[Config, Model]):
    """A trained system with everything that belongs to it.

    Attributes:
        config: `config.json`.
        model: in evaluation mode, on the CPU.
        tokenizer: of fixed length.
        samples: held-out products.
        extras: values by the name of their file.
    """

    config: Config
    model: Model
    tokenizer: Tokenizer
    samples: Sequence[Product]
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Extra:
    """A file of a system's own: how it is written and read; `load` raises ValueError when it cannot be used."""

    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]


@dataclass(frozen=True)
class BundleKind(Generic[Config, Model]):
    """What the bundles of one system hold.

    Attributes:
        config: type of `config.json`, whose `system` names the system.
        build: a model of a configuration's architecture with random weights.
        text_encoder: the part of a configuration that the tokenizer belongs to.
        extras: further files by name.
        check: raises ValueError where parts of a bundle do not fit each other.
    """

    config: type[Config]
    build: Callable[[Config], Model]
    text_encoder: Callable[[Config], TextEncoderConfig]
    extras: Mapping[str, Extra] = field(default_factory=dict)
    check: Callable[[Bundle[Config, Model]], None] = lambda bundle: None

    def save(self, folder: Path, bundle: Bundle[Config, Model]) -> None:
        """Writes a bundle to `folder`, replacing the one that is there only when the new one is complete."""
        with atomic_folder(folder) as aside:
            (aside / "config.json").write_text(bundle.config.model_dump_json(indent=2) + "\n")
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
            save_file(state, aside / "model.safetensors")
            bundle.tokenizer.save(str(aside / "tokenizer.json"))
            write_feed(aside / "samples.parquet", bundle.samples)
            for name, extra in self.extras.items():
                extra.save(bundle.extras[name], aside / name)

    def load(self, folder: Path) -> Bundle[Config, Model]:
        """Reads and checks a bundle.

        Raises:
            BundleError: a file is missing, corrupt, of another format or system, or does not fit the others.
        """
        try:
            config = self.config.model_validate(read_config(folder))
        except ValidationError as error:
            raise BundleError(f"{folder / 'config.json'}: {error}") from error
        tokenizer = _load_tokenizer(folder, self.text_encoder(config))
        model = self.build(config)
        path = bundle_file(folder, "model.safetensors")
        try:
            model.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{path} does not hold the model of config.json: {error}") from error
        extras = {}
        for name, extra in self.extras.items():
            try:
                extras[name] = extra.load(bundle_file(folder, name))
            except BundleError:
                raise
            except (SafetensorError, ValueError, KeyError) as error:
                raise BundleError(f"{folder / name}: {error}") from error
        bundle = Bundle(config, model.eval(), tokenizer, _load_samples(folder), extras)
        try:
            self.check(bundle)
        except ValueError as error:
            raise BundleError(f"{folder}: {error}") from error
        return bundle


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says; "system" names the system that a bundle belongs to.

    Raises:
        BundleError: `folder` is no bundle of this release.
    """
    path = bundle_file(folder, "config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format_version is {version!r}, this release of Shelfwise reads {FORMAT_VERSION}")
    return content


def start_from(model: nn.Module, folder: Path) -> int:
    """Gives a model the weights of a bundle, of the same or another system, wherever name and shape are the same.

    Returns:
        How many tensors were taken.

    Raises:
        BundleError: the bundle has none that fits.
    """
    own = model.state_dict()
    path = bundle_file(folder, "model.safetensors")
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise BundleError(f"{path}: {error}") from error
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise BundleError(f"{path} has no weights that fit: none has the name and shape of one of the model's")
    model.load_state_dict(fitting, strict=False)
    return len(fitting)


def bundle_file(folder: Path, name: str) -> Path:
    """A file of a bundle.

    Raises:
        BundleError: it is missing.
    """
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: {name} is missing")
    return path


def _load_tokenizer(folder: Path, encoder: TextEncoderConfig) -> Tokenizer:
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


def _load_samples(folder: Path) -> tuple[Product, ...]:
    try:
        samples = tuple(open_feed(bundle_file(folder, "samples.parquet")))
    except FeedError as error:
        raise BundleError(str(error)) from error
    if not samples:
        raise BundleError(f"{folder / 'samples.parquet'} holds no product")
    return samples
