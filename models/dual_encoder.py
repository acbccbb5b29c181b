"""The CLIP dual encoder: an image encoder and a text encoder that meet in one embedding space.

Symmetric cross-entropy over the N x N cosine matrix with a learned temperature (Radford et al., 2021).  The temperature
is bounded as in the paper (logit scale <= 100), which keeps the loss from running away on near-duplicate titles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .encoders import ImageEncoder, TextEncoder

MAX_LOGIT_SCALE = math.log(100.0)


class DualEncoder(nn.Module):
    """Two encoders and the temperature between them."""

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeds both sides.

        Args:
            pixel_values: [B, H, W, 3] uint8.
            input_ids, attention_mask: [B, L] int64.

        Returns:
            image_embeds [B, D], text_embeds [B, D], both of unit length, and the scale that multiplies their cosines.
        """
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return self.image_encoder(pixel_values), self.text_encoder(input_ids, attention_mask), scale
