"""Encoders from pretrained weights: Hugging Face folders of any kind in `models.backbones`, and a package's ImageNet.

Weights may be of any float type and become float32; code that a folder brings is never run. A checkpoint that embeds
by itself (CLIP, SigLIP, …) brings its projection, so that its two towers still meet; others get a fresh one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import efficientnet_lite
from .backbones import IMAGE_KINDS, NETWORKS, TEXT_KINDS, plain_config
from .checkpoint_files import checkpoint_kind, pixel_statistics, sentence
from .colour_tower import ColourTower, colour_tower_config
from .encoders import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig
from .image_tower import ImagePooling, both_sides
from .tokenizer import load_tokenizer, padding_token

LARGEST_SIDE = 1024  # of the images that a folder may ask for by itself


@dataclass(frozen=True)
class Pretrained:
    """A backbone with what belongs to it."""

    network: PreTrainedModel
    projection: Tensor | None = None  # [D, C], of a checkpoint that embeds by itself
    statistics: dict[str, Any] = field(default_factory=dict)  # mean and std of an image backbone's pixels
    has_pooler: bool = True

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds the network."""
        return plain_config(self.network.config.to_dict())

    def image_encoder(self, projection_dim: int, height: int, width: int) -> ImageEncoder:
        """An encoder of the given image size; of the given width D, unless the checkpoint has its own."""
        pooling: ImagePooling = "pooler"
        if self.network.config.model_type.startswith("dinov2"):
            pooling = "first_and_mean"
        elif not self.has_pooler:
            pooling = "first"
        config = ImageEncoderConfig(
            backbone=self.config,
            projection_dim=projection_dim if self.projection is None else len(self.projection),
            height=height,
            width=width,
            pooling=pooling,
            **self.statistics,
        )
        encoder = ImageEncoder(config, self.network)
        if self.projection is not None:
            encoder.projection.weight = nn.Parameter(self.projection)
        return encoder

    def colour_tower(self, embed_dim: int, height: int, width: int) -> ColourTower:
        """A colour tower for photos of the given size."""
        return ColourTower(colour_tower_config(self.config, height, width, embed_dim, **self.statistics), self.network)


def image_encoder_from_checkpoint(
    folder: Path, projection_dim: int, size: tuple[int, int] | None = None
) -> ImageEncoder:
    """An image encoder from a checkpoint folder.

    Args:
        folder: holds config.json, safetensors weights and, where the authors gave one, a processor's config.
        projection_dim: width D of a fresh projection; ignored where the checkpoint embeds by itself.
        size: height and width of the images it will see; what the checkpoint was trained on when None.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another kind of model, is damaged, or does not take images of that size.
    """
    found = _pretrained(folder, "vision")
    height, width = size or both_sides(found.config.get("image_size") or 224)
    if size is None and "num_patches" in found.config:  # SigLIP2
        height = width = found.config["patch_size"] * int(found.config["num_patches"] ** 0.5)
    if size is None and max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"the checkpoint in {folder} is for images of {height}x{width} pixels: give a size of your own"
        )
    return found.image_encoder(projection_dim, height, width)


def colour_tower_from_checkpoint(folder: Path, height: int, width: int, embed_dim: int = 128) -> ColourTower:
    """A colour tower around the image backbone of a checkpoint folder; errors as above."""
    return _pretrained(folder, "vision").colour_tower(embed_dim, height, width)


def imagenet_backbone() -> Pretrained | None:
    """EfficientNet-Lite0 trained on ImageNet; None when `efficientnet_lite.PACKAGE` is not installed.

    Raises:
        ValueError: the installed package does not hold it.
    """
    network = efficientnet_lite.imagenet_network()
    statistics = {"mean": efficientnet_lite.MEAN, "std": efficientnet_lite.STD}
    return None if network is None else Pretrained(network, statistics=statistics)


def imagenet_image_encoder(height: int, width: int, projection_dim: int) -> ImageEncoder | None:
    """An image encoder around `imagenet_backbone`; None without the package."""
    found = imagenet_backbone()
    return None if found is None else found.image_encoder(projection_dim, height, width)


def text_encoder_from_checkpoint(
    folder: Path, projection_dim: int, max_length: int, *, pooling: Literal["mean", "gru"] = "mean"
) -> TextEncoder:
    """A text encoder from a checkpoint folder.

    Args:
        folder: holds config.json, safetensors weights and, where it is to be used, tokenizer.json.
        projection_dim: width D of a fresh projection; ignored where the checkpoint embeds by itself.
        max_length: tokens a title is padded or cut to; at most what the checkpoint's positions allow.
        pooling: of a checkpoint that does not embed by itself; "gru" starts a GRU from scratch on top.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another kind of model, is damaged, has fewer positions than `max_length`, or a
            tokenizer that does not fit it.
    """
    found = _pretrained(folder, "text")
    backbone, kind = found.config, found.network.config.model_type
    positions = backbone["max_position_embeddings"]
    if kind in ("roberta", "xlm-roberta", "mpnet"):  # they count from behind the padding's number
        positions -= backbone["pad_token_id"] + 1
    if max_length > positions:
        raise ValueError(f"max_length={max_length} exceeds the {positions} positions of the checkpoint in {folder}")
    padding = backbone.get("pad_token_id")
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)
        if tokenizer.get_vocab_size() > backbone["vocab_size"]:
            raise ValueError(
                f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens, "
                f"the text tower beside it only {backbone['vocab_size']}"
            )
        padding, _ = padding_token(tokenizer)
    own: Literal["first", "pooler"] = "first" if kind == "chinese_clip_text_model" else "pooler"
    config = TextEncoderConfig(
        backbone=backbone,
        projection_dim=projection_dim if found.projection is None else len(found.projection),
        max_length=max_length,
        pooling=pooling if found.projection is None else own,
        padding=padding if kind.startswith("siglip") else None,
    )
    encoder = TextEncoder(config, found.network)
    if found.projection is not None:
        encoder.projection.weight = nn.Parameter(found.projection)
    return encoder


def _pretrained(folder: Path, part: Literal["vision", "text"]) -> Pretrained:
    """One tower of a checkpoint folder."""
    kind = checkpoint_kind(folder, IMAGE_KINDS if part == "vision" else TEXT_KINDS, part)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is judged below
    network_class: Any = NETWORKS.get(kind, AutoModel)
    try:
        model, info = network_class.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever transformers raises for weights that do not fit their config
        raise ValueError(f"the checkpoint in {folder} cannot be read: {sentence(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    network: PreTrainedModel = getattr(model, f"{part}_model", model)
    prefix = "" if network is model else f"{part}_model."
    missing = {name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix)}
    without_pooler = {name for name in missing if not name.startswith("pooler.")}
    needed = sorted(missing if kind.startswith("blip") else without_pooler)
    if needed:
        raise ValueError(f"the weights in {folder} lack {len(needed)} tensors of its {part} tower, {needed[0]!r} first")
    name = "visual_projection" if part == "vision" else "text_projection"
    projection: Tensor | None = None
    if hasattr(model, name) and f"{name}.weight" not in info["missing_keys"]:
        projection = getattr(model, name).weight.detach()
    elif kind.startswith("siglip"):  # its towers' outputs are its embeddings
        config = network.config
        projection = torch.eye(config.hidden_size if part == "vision" else config.projection_size)
    statistics = pixel_statistics(folder) if part == "vision" else {}
    return Pretrained(network, projection, statistics, has_pooler=missing == without_pooler)
