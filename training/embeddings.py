"""Embeddings of examples, computed once: what a head on frozen encoders trains on, and what every evaluation needs.

Under several processes each computes its share of the rows, and all of them get the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.encoders import ImageEncoder, TextEncoder

from .distributed import gather_parts, own_rows
from .examples import Examples
from .sampling import BatchRequest

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


class CachedEmbeddings(Dataset[dict[str, Tensor]]):
    """Batches sliced from embeddings in memory, on the device where they are."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        self.device = embeddings.labels.device

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, request: BatchRequest) -> dict[str, Tensor]:
        """image_embeds, text_embeds [B, D], image_present, text_present [B, 1] bool, labels [B]."""
        rows = torch.from_numpy(np.sort(request.rows)).to(self.device)
        return {name: getattr(self.embeddings, name)[rows] for name in Embeddings.__dataclass_fields__}


def embed_examples(
    image_encoder: ImageEncoder, text_encoder: TextEncoder, examples: Examples, rows: np.ndarray
) -> Embeddings:
    """Embeds the examples of `rows` [M] in evaluation mode and float32, on the device where the encoders are."""
    device = image_encoder.projection.weight.device
    kept = ("image_present", "text_present", "labels")

    def embed(batch: np.ndarray) -> tuple[Tensor, ...]:
        given = {name: tensor.to(device) for name, tensor in examples.batch(batch).items()}
        texts = text_encoder(given["input_ids"], given["attention_mask"])
        return image_encoder(given["pixel_values"]), texts, *(given[name] for name in kept)

    with evaluating(image_encoder, text_encoder):
        return Embeddings(*in_batches(embed, rows))


@torch.no_grad()
def in_batches(embed: Callable[[np.ndarray], tuple[Tensor, ...]], rows: np.ndarray) -> tuple[Tensor, ...]:
    """What `embed` gives for some rows [M], a batch at a time; under several processes each computes a share.

    Args:
        embed: from the rows of a batch [B] to tensors [B, …].
        rows: which; where there are none, `embed` is asked for none.

    Returns:
        The tensors [M, …].
    """
    mine = own_rows(rows)
    parts = [embed(mine[start : start + EMBED_BATCH]) for start in range(0, max(1, len(mine)), EMBED_BATCH)]
    return tuple(gather_parts(torch.cat(column), len(rows)) for column in zip(*parts, strict=True))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode for as long as this lasts."""
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in modes:
            module.train(mode)


@torch.no_grad()
def embed_names(text_encoder: nn.Module, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Embeddings [C, D] float32 of category names, for label similarity."""
    device = next(text_encoder.parameters()).device
    with evaluating(text_encoder):
        parts = [
            text_encoder(*(torch.from_numpy(array[start : start + EMBED_BATCH]).to(device) for array in arrays))
            for arrays in [(input_ids, attention_mask)]
            for start in range(0, len(input_ids), EMBED_BATCH)
        ]
    return torch.cat(parts).cpu().numpy()
