"""Two towers that meet in one embedding space: what every contrastive stage trains.

The layout of CLIP (Radford et al., 2021): an image encoder, a text encoder and a learned temperature between them. The
temperature is bounded as in the paper (logit scale <= 100), which keeps the loss from running away on near-duplicate
titles.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .encoders import TextEncoder

MAX_LOGIT_SCALE = math.log(100.0)

ImageTower = TypeVar("ImageTower", bound=nn.Module)


class TwoTowers(nn.Module, Generic[ImageTower]):
    """Two encoders and the temperature between them.

    Args:
        image_encoder: [N, H, W, 3] uint8 -> [N, D], unit length.
        text_encoder: twice [U, L] int64 -> [U, D], unit length.
    """

    def __init__(self, image_encoder: ImageTower, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeds both sides, which need not be equally many.

        Args:
            pixel_values: [N, H, W, 3] uint8.
            input_ids, attention_mask: [U, L] int64.

        Returns:
            image_embeds [N, D], text_embeds [U, D], both of unit length, and the scale that multiplies their cosines.
        """
        return self.image_encoder(pixel_values), self.text_encoder(input_ids, attention_mask), self.scale

    @property
    def scale(self) -> Tensor:
        """What multiplies the cosines, the inverse of the temperature, at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
