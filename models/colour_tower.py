"""The image tower of the colour matcher: a photo to one unit-length embedding that tells its colour.

Centre crop, ResNet (He et al., 2016), the cells of its last feature map as segments, self-attention over the segments
(which of them show the product, which the background or the model's skin), MLP. Like every encoder here it takes uint8
and normalises in the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, ResNetConfig

from .attention import SelfAttention
from .encoders import IMAGENET_MEAN, IMAGENET_STD, backbone_from_config, normalised, plain_config, require_checkpoint


class ColourTowerConfig(BaseModel):
    """What is needed to rebuild an image tower; `backbone` is a Hugging Face ResNet config with its `model_type`."""

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any]
    embed_dim: PositiveInt = 128
    num_heads: PositiveInt = 4
    height: PositiveInt  # of the images it is given
    width: PositiveInt
    crop_height: PositiveInt  # of their centre, all that is looked at
    crop_width: PositiveInt


class ColourTower(nn.Module):
    """uint8 photos to unit-length embeddings.

    Args:
        config: backbone, widths, sizes.
        backbone: the network itself; built from `config.backbone` with random weights when None.

    Raises:
        ValueError: the crop is larger than the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ColourTowerConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        if config.crop_height > config.height or config.crop_width > config.width:
            raise ValueError(
                f"a crop of {config.crop_height}x{config.crop_width} does not fit into images of "
                f"{config.height}x{config.width} pixels"
            )
        self.config = config
        self.backbone = backbone if backbone is not None else backbone_from_config(config.backbone)
        width = config.embed_dim
        with torch.no_grad():
            empty = torch.zeros(1, 3, config.crop_height, config.crop_width)
            _, channels, rows, columns = self.backbone.eval()(pixel_values=empty).last_hidden_state.shape
        self.segments = nn.Linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        self.attention = SelfAttention(width, config.num_heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255.0, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, H, W, 3] uint8 -> [N, D] float32, unit length."""
        config = self.config
        top, left = (config.height - config.crop_height) // 2, (config.width - config.crop_width) // 2
        centre = pixel_values[:, top : top + config.crop_height, left : left + config.crop_width]
        features = self.backbone(pixel_values=normalised(centre, self.mean, self.std)).last_hidden_state
        segments = self.segments(features.flatten(2).transpose(1, 2)) + self.position
        pooled = self.attention(segments).mean(1)
        return F.normalize(self.mlp(pooled).float(), dim=-1)


def small_colour_tower(height: int, width: int, embed_dim: int = 128) -> ColourTower:
    """A tower of 1.4 M parameters, whose ResNet ends at a sixteenth of the image's size: colour needs no more depth.

    The crop leaves out a margin of a twentieth on every side.
    """
    backbone = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256], depths=[1, 1, 1], layer_type="basic")
    return ColourTower(_config(plain_config(backbone.to_dict()), height, width, embed_dim))


def colour_tower_from_checkpoint(folder: Path, height: int, width: int, embed_dim: int = 128) -> ColourTower:
    """A tower around a pretrained ResNet (ResNet-18, say) from a Hugging Face checkpoint folder.

    Raises:
        FileNotFoundError: `folder` has no config.json.
        ValueError: the checkpoint is no ResNet.
    """
    require_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "resnet":
        raise ValueError(f"the checkpoint in {folder} is a {config.model_type!r}; the colour tower takes a 'resnet'")
    backbone = AutoModel.from_pretrained(folder, use_safetensors=True)
    return ColourTower(_config(plain_config(config.to_dict()), height, width, embed_dim), backbone)


def _config(backbone: dict[str, Any], height: int, width: int, embed_dim: int) -> ColourTowerConfig:
    return ColourTowerConfig(
        backbone=backbone,
        embed_dim=embed_dim,
        height=height,
        width=width,
        crop_height=height - 2 * round(0.05 * height),
        crop_width=width - 2 * round(0.05 * width),
    )
