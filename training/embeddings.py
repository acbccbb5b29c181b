"""Embeddings of examples, computed once: what a head on frozen encoders trains on, and what every evaluation needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders import ImageEncoder, TextEncoder

from .examples import Examples

EMBED_BATCH = 256


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of M examples with what a category head needs beside them."""

    image_embeds: Tensor  # [M, D] float32
    text_embeds: Tensor  # [M, D] float32
    image_present: Tensor  # [M, 1] bool
    text_present: Tensor  # [M, 1] bool
    labels: Tensor  # [M] int64

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def embed_examples(
    image_encoder: ImageEncoder, text_encoder: TextEncoder, examples: Examples, rows: np.ndarray
) -> Embeddings:
    """Embeds the examples of `rows` in evaluation mode and float32, on the device where the encoders are.

    Args:
        rows: [M] indices into `examples`.
    """
    device = image_encoder.projection.weight.device
    modes = [(encoder, encoder.training) for encoder in (image_encoder, text_encoder)]
    for encoder, _ in modes:
        encoder.eval()
    images, texts = [], []
    for start in range(0, len(rows), EMBED_BATCH):
        batch = rows[start : start + EMBED_BATCH]
        images.append(image_encoder(torch.from_numpy(examples.pixel_values[batch]).to(device)))
        texts.append(
            text_encoder(
                torch.from_numpy(examples.input_ids[batch]).to(device),
                torch.from_numpy(examples.attention_mask[batch]).to(device),
            )
        )
    for encoder, mode in modes:
        encoder.train(mode)
    width = image_encoder.config.projection_dim
    return Embeddings(
        torch.cat(images) if images else torch.empty(0, width),
        torch.cat(texts) if texts else torch.empty(0, width),
        torch.from_numpy(examples.image_present[rows])[:, None].to(device),
        torch.from_numpy(examples.text_present[rows])[:, None].to(device),
        torch.from_numpy(examples.labels[rows]).to(device),
    )


@torch.no_grad()
def embed_names(text_encoder: nn.Module, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Embeddings [C, D] float32 of category names, for label similarity."""
    device = next(text_encoder.parameters()).device
    parts = [
        text_encoder(
            torch.from_numpy(input_ids[start : start + EMBED_BATCH]).to(device),
            torch.from_numpy(attention_mask[start : start + EMBED_BATCH]).to(device),
        )
        for start in range(0, len(input_ids), EMBED_BATCH)
    ]
    return torch.cat(parts).cpu().numpy()
