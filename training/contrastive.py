"""Contrastive training of the two encoders on (image, title) pairs, CLIP's objective.

Under several processes the negatives are gathered from all of them, with gradients, so N processes with batch B train
on the same N*B x N*B cosine matrix as one process with batch N*B would.
Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from models.encoders import ImageEncoder
from models.two_towers import TwoTowers

from .embeddings import embed_examples
from .examples import AugmentedPairs, Examples
from .train import Batch


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the cosine matrix of N pairs.

    Args:
        image_embeds, text_embeds: [N, D], unit length; row i of both is the same product.
        scale: multiplies the cosines, the inverse of the temperature.
    """
    logits = scale * image_embeds.float() @ text_embeds.float().T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class ContrastiveTask:
    """Trains a dual encoder on the pairs of the training split."""

    name = "contrastive"

    def __init__(self, model: TwoTowers[ImageEncoder], examples: Examples) -> None:
        self.model = model
        self.examples = examples
        self.dataset = AugmentedPairs(examples, examples.paired_rows("train"))

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss over the pairs of all processes."""
        image_embeds, text_embeds, scale = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
        if torch.distributed.is_initialized():
            image_embeds = torch.cat(all_gather(image_embeds))
            text_embeds = torch.cat(all_gather(text_embeds))
        return contrastive_loss(image_embeds, text_embeds, scale), {"logit_scale": scale.detach()}

    def evaluate(self) -> dict[str, float]:
        """Image-to-text recall at 1 and 5 among 100 validation pairs, averaged over as many hundreds as there are."""
        rows = self.examples.paired_rows("val")
        rows = rows[np.random.default_rng(0).permutation(len(rows))][: 100 * max(1, len(rows) // 100)]
        embeddings = embed_examples(self.model.image_encoder, self.model.text_encoder, self.examples, rows)
        recalls: list[Tensor] = []
        for image_embeds, text_embeds in zip(
            embeddings.image_embeds.split(100), embeddings.text_embeds.split(100), strict=True
        ):
            cosines = image_embeds @ text_embeds.T
            rank = (cosines > cosines.diagonal()[:, None]).sum(1)
            recalls.append(torch.stack([(rank < 1).float().mean(), (rank < 5).float().mean()]))
        recall_at_1, recall_at_5 = torch.stack(recalls).mean(0).tolist()
        return {"recall_at_1_of_100": recall_at_1, "recall_at_5_of_100": recall_at_5}
