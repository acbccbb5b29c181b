"""The image tower of the colour matcher: a photo to one unit-length embedding that tells its colour.

Centre crop, any image backbone (a small ResNet; He et al., 2016), its patches as segments, self-attention over the
segments (which of them show the product, which the background or the model's skin), MLP.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ResNetConfig

from .attention import SelfAttention
from .backbones import plain_config
from .image_tower import IMAGENET_MEAN, IMAGENET_STD, ImageTower


class ColourTowerConfig(BaseModel):
    """What is needed to rebuild an image tower; `backbone` is a Hugging Face config with its `model_type`."""

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any]
    embed_dim: PositiveInt = 128
    num_heads: PositiveInt = 4
    height: PositiveInt  # of the images it is given
    width: PositiveInt
    crop_height: PositiveInt  # of their centre, all that is looked at
    crop_width: PositiveInt
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class ColourTower(ImageTower):
    """uint8 photos to unit-length embeddings.

    Args:
        config: backbone, widths, sizes.
        backbone: the network itself; built from `config.backbone` with random weights when None.

    Raises:
        ValueError: the crop is larger than the image, or too small for the backbone.
    """

    def __init__(self, config: ColourTowerConfig, backbone: PreTrainedModel | None = None) -> None:
        if config.crop_height > config.height or config.crop_width > config.width:
            raise ValueError(
                f"a crop of {config.crop_height}x{config.crop_width} does not fit into images of "
                f"{config.height}x{config.width} pixels"
            )
        crop = config.crop_height, config.crop_width
        super().__init__(config.backbone, *crop, config.mean, config.std, "mean", backbone)
        self.config = config
        width = config.embed_dim
        self.segments = nn.Linear(self.patch_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.patch_count, width))
        self.attention = SelfAttention(width, config.num_heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, H, W, 3] uint8 -> [N, D] float32, unit length."""
        config = self.config
        top, left = (config.height - config.crop_height) // 2, (config.width - config.crop_width) // 2
        centre = pixel_values[:, top : top + config.crop_height, left : left + config.crop_width]
        pooled = self.attention(self.segments(self.patch_features(centre)) + self.position).mean(1)
        return F.normalize(self.mlp(pooled).float(), dim=-1)


def small_colour_tower(height: int, width: int, embed_dim: int = 128) -> ColourTower:
    """A tower of 1.4 M parameters, whose ResNet ends at a sixteenth of the image's size: colour needs no more depth."""
    backbone = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256], depths=[1, 1, 1], layer_type="basic")
    return ColourTower(colour_tower_config(plain_config(backbone.to_dict()), height, width, embed_dim))


def colour_tower_config(
    backbone: dict[str, Any], height: int, width: int, embed_dim: int, **statistics: Any
) -> ColourTowerConfig:
    """Sizes of a tower that leaves out a margin of a twentieth on every side."""
    return ColourTowerConfig(
        backbone=backbone,
        embed_dim=embed_dim,
        height=height,
        width=width,
        crop_height=height - 2 * round(0.05 * height),
        crop_width=width - 2 * round(0.05 * width),
        **statistics,
    )
