"""The bundle of a colour matcher: config.json, model.safetensors, tokenizer.json and samples.parquet, as in bundle.py.

The samples are held-out products in the feed's own schema, one a colour; those whose titles differ in the colour word
are one product of the matcher, so reading them back needs no further file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from catalogue.atomic import atomic_folder
from catalogue.colour_groups import colour_variant
from catalogue.feed import write_feed
from catalogue.product import Product
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, ColourTowerConfig
from models.encoders import TextEncoder, TextEncoderConfig
from models.matcher import MatcherConfig

from .bundle import (
    FORMAT_VERSION,
    BundleError,
    load_config,
    load_samples,
    load_text_tokenizer,
    load_weights,
    save_weights,
)


class ColourMatcherConfig(BaseModel):
    """`config.json` of a colour matcher's bundle."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    system: Literal["match-colours"] = "match-colours"
    image_encoder: ColourTowerConfig
    text_encoder: TextEncoderConfig
    matcher: MatcherConfig
    training: dict[str, Any] = Field(default_factory=dict, description="settings of the run, for the record")
    metrics: dict[str, Any] = Field(default_factory=dict, description="held-out figures by stage and kind of product")


@dataclass(frozen=True)
class ColourMatcherBundle:
    """A trained colour matcher with everything that belongs to it."""

    config: ColourMatcherConfig
    model: ColourMatcher
    tokenizer: Tokenizer  # of fixed length config.text_encoder.max_length
    samples: Sequence[Sequence[Product]]  # held-out products, each as its colour variants


def build_colour_matcher(config: ColourMatcherConfig) -> ColourMatcher:
    """A colour matcher of the given architecture with random weights."""
    return ColourMatcher(
        ColourTower(config.image_encoder), TextEncoder(config.text_encoder), ColourHead(config.matcher)
    )


def save_colour_bundle(folder: Path, bundle: ColourMatcherBundle) -> None:
    """Writes a bundle to `folder`, replacing the one that is there only when the new one is complete."""
    with atomic_folder(folder) as aside:
        (aside / "config.json").write_text(bundle.config.model_dump_json(indent=2) + "\n")
        save_weights(aside, bundle.model)
        bundle.tokenizer.save(str(aside / "tokenizer.json"))
        write_feed(aside / "samples.parquet", [variant for product in bundle.samples for variant in product])


def load_colour_bundle(folder: Path) -> ColourMatcherBundle:
    """Reads and checks a bundle.

    Raises:
        BundleError: a file is missing, corrupt, of a newer format or another system, or does not fit the others.
    """
    config = load_config(folder, ColourMatcherConfig)
    tokenizer = load_text_tokenizer(folder, config.text_encoder)
    model = build_colour_matcher(config)
    load_weights(folder, model)
    products: dict[str, list[Product]] = {}
    for sample in load_samples(folder):
        variant = colour_variant(sample)
        if variant is None:
            raise BundleError(f"{folder / 'samples.parquet'}: product {sample.id!r} has no image or no base_colour")
        products.setdefault(variant.group, []).append(sample)
    return ColourMatcherBundle(config, model.eval(), tokenizer, tuple(products.values()))
