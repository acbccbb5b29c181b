"""Encoders from pretrained weights: Hugging Face folders of any kind in `models.backbones`, and a package's ImageNet.

Weights may be of any float type and become float32; code that a folder brings is never run. What a folder's processor
does to pixels is read off its output for a black and a white image, whichever of the two files describes it. What does
not fit is refused in a sentence: FileNotFoundError for a file that is missing, ValueError for all else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import efficientnet_lite
from .backbones import IMAGE_KINDS, NETWORKS, TEXT_KINDS, plain_config
from .colour_tower import ColourTower, colour_tower_config
from .encoders import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig
from .image_tower import ImagePooling
from .tokenizer import load_tokenizer, padding_token

LARGEST_SIDE = 1024  # of images that a folder may ask for without being told so
INDEX = "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Pretrained:
    """One tower of a checkpoint.

    `projection` is what the checkpoint projects its pooled output with, [D, C]; None where it has none.
    """

    network: PreTrainedModel
    projection: Tensor | None
    missing: frozenset[str]  # parameters of the network that the folder does not have

    @property
    def config(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        return plain_config(self.network.config.to_dict())


def image_encoder_from_checkpoint(
    folder: Path, projection_dim: int, size: tuple[int, int] | None = None
) -> ImageEncoder:
    """An image encoder from a checkpoint folder.

    Args:
        folder: holds config.json, safetensors weights and, where the authors gave one, a processor's config.
        projection_dim: width D of a fresh projection; a checkpoint that embeds by itself (CLIP, SigLIP, …) brings its
            own, and this is ignored.
        size: height and width of the images it will see; what the checkpoint was trained on when None.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another kind of model, is damaged, or does not take images of that size.
    """
    found = _read(folder, "vision")
    backbone = found.config
    height, width = size or _own_size(folder, backbone)
    encoder = ImageEncoder(
        ImageEncoderConfig(
            backbone=backbone,
            projection_dim=projection_dim if found.projection is None else len(found.projection),
            height=height,
            width=width,
            pooling=_image_pooling(found),
            **_statistics(folder),
        ),
        found.network,
    )
    return _projecting(encoder, found.projection)


def text_encoder_from_checkpoint(
    folder: Path, projection_dim: int, max_length: int, *, pooling: Literal["mean", "gru"] = "mean"
) -> TextEncoder:
    """A text encoder from a checkpoint folder.

    Args:
        folder: holds config.json, safetensors weights and, where it is to be used, tokenizer.json.
        projection_dim: width D of a fresh projection; a checkpoint that embeds by itself (CLIP, SigLIP, …) brings its
            own, and this is ignored.
        max_length: tokens a title is padded or cut to; at most what the checkpoint's positions allow.
        pooling: of a checkpoint that does not embed by itself; "gru" starts a GRU from scratch on top.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another kind of model, is damaged, has fewer positions than `max_length`, or a
            tokenizer that does not fit it.
    """
    found = _read(folder, "text")
    backbone = found.config
    kind = backbone["model_type"]
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
    siglip = kind.startswith("siglip")
    own = {"chinese_clip_text_model": "first"}.get(kind, "pooler")
    encoder = TextEncoder(
        TextEncoderConfig(
            backbone=backbone,
            projection_dim=projection_dim if found.projection is None else len(found.projection),
            max_length=max_length,
            pooling=pooling if found.projection is None else own,
            padding=padding if siglip else None,
        ),
        found.network,
    )
    return _projecting(encoder, found.projection)


def colour_tower_from_checkpoint(folder: Path, height: int, width: int, embed_dim: int = 128) -> ColourTower:
    """A colour tower around the image backbone of a checkpoint folder.

    Raises:
        FileNotFoundError, ValueError: as `image_encoder_from_checkpoint`.
    """
    found = _read(folder, "vision")
    return ColourTower(
        colour_tower_config(found.config, height, width, embed_dim, **_statistics(folder)), found.network
    )


def imagenet_image_encoder(height: int, width: int, projection_dim: int) -> ImageEncoder | None:
    """EfficientNet-Lite0 trained on ImageNet; None when its package is not installed (`efficientnet_lite.PACKAGE`).

    Raises:
        ValueError: the installed package does not hold it.
    """
    backbone = efficientnet_lite.imagenet_backbone()
    if backbone is None:
        return None
    config = ImageEncoderConfig(
        backbone=plain_config(backbone.config.to_dict()),
        projection_dim=projection_dim,
        height=height,
        width=width,
        mean=efficientnet_lite.MEAN,
        std=efficientnet_lite.STD,
    )
    return ImageEncoder(config, backbone)


def imagenet_colour_tower(height: int, width: int, embed_dim: int = 128) -> ColourTower | None:
    """A colour tower around the same; None when its package is not installed."""
    backbone = efficientnet_lite.imagenet_backbone()
    if backbone is None:
        return None
    statistics = {"mean": efficientnet_lite.MEAN, "std": efficientnet_lite.STD}
    config = plain_config(backbone.config.to_dict())
    return ColourTower(colour_tower_config(config, height, width, embed_dim, **statistics), backbone)


def _projecting(encoder: Any, projection: Tensor | None) -> Any:
    if projection is not None:
        encoder.projection.weight = nn.Parameter(projection)
    return encoder


def _image_pooling(found: Pretrained) -> ImagePooling:
    kind = found.network.config.model_type
    if kind.startswith("dinov2"):
        return "first_and_mean"
    if any(name.startswith("pooler.") for name in found.missing):  # of a ViT saved with a classifier
        return "first"
    return "pooler" if getattr(found.network.config, "vision_use_head", True) else "mean"


def _own_size(folder: Path, backbone: dict[str, Any]) -> tuple[int, int]:
    size = backbone.get("image_size") or 224
    if "num_patches" in backbone:  # SigLIP2
        size = backbone["patch_size"] * int(backbone["num_patches"] ** 0.5)
    height, width = (size, size) if isinstance(size, int) else size
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"the checkpoint in {folder} is for images of {height}x{width} pixels: give a size of your own"
        )
    return height, width


def _statistics(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the folder's processor; none when the folder describes no image processor."""
    described = [json.loads(file.read_text()) for name in PROCESSORS if (file := folder / name).is_file()]
    if not any(
        "image_processor" in content or "image_mean" in content or "image_processor_type" in content
        for content in described
    ):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        black, white = (
            processor(Image.new("RGB", (64, 64), (level,) * 3), return_tensors="np")["pixel_values"][0]
            for level in (0, 255)
        )
    except Exception as error:  # as many kinds as there are processors
        raise ValueError(f"the image processor in {folder} cannot be read: {_sentence(error)}") from error
    centre = [
        image[0].reshape(-1, 3)[0] if image.ndim == 2 else image[:, image.shape[1] // 2, image.shape[2] // 2]
        for image in (black, white)
    ]
    std = 1 / (centre[1].astype(np.float64) - centre[0])
    return {"mean": tuple(np.round(-centre[0] * std, 6).tolist()), "std": tuple(np.round(std, 6).tolist())}


def _read(folder: Path, part: Literal["vision", "text"]) -> Pretrained:
    """A tower of a checkpoint folder, in float32."""
    kinds = IMAGE_KINDS if part == "vision" else TEXT_KINDS
    kind = _checked_kind(folder)
    if kind.removesuffix(f"_{part}_model") not in kinds:
        raise ValueError(f"the checkpoint in {folder} is of kind {kind!r}; the {part} encoder takes {', '.join(kinds)}")
    _check_weights(folder)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is judged below
    try:
        network_class: Any = NETWORKS.get(kind, AutoModel)
        model, info = network_class.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever transformers raises for weights that do not fit their config
        raise ValueError(f"the checkpoint in {folder} cannot be read: {_sentence(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    tower = f"{part}_model"
    network: PreTrainedModel = getattr(model, tower, model)
    prefix = "" if network is model else f"{tower}."
    missing = frozenset(name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix))
    needed = sorted(name for name in missing if not name.startswith("pooler."))
    if needed:
        raise ValueError(f"the weights in {folder} lack {len(needed)} tensors of its {part} tower, {needed[0]!r} first")
    own = getattr(model, "visual_projection" if part == "vision" else "text_projection", None)
    if own is not None and not any("projection.weight" in name for name in info["missing_keys"]):
        return Pretrained(network, own.weight.detach(), missing)
    if kind.startswith("siglip"):  # embeds without a further projection
        config = network.config
        width = config.hidden_size if part == "vision" else config.projection_size
        return Pretrained(network, torch.eye(width), missing)
    return Pretrained(network, None, missing)


def _checked_kind(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no Hugging Face checkpoint folder: config.json is missing")
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            if content.read(40).startswith(b"version https://git-lfs"):
                raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` there")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no config: it holds a {type(config).__name__}")
    return str(config.get("model_type") or config.get("architecture"))


def _check_weights(folder: Path) -> None:
    names = ["model.safetensors"]
    if (folder / INDEX).is_file() and not (folder / names[0]).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            others = sorted(file.name for suffix in ("bin", "h5", "msgpack") for file in folder.glob(f"*.{suffix}"))
            found = f"; {others[0]} is not read, convert it to safetensors" if others else ""
            raise FileNotFoundError(f"{folder} has no weights: {name} is missing{found}")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is cut or no safetensors file: {error}") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
