"""Contrastive training of two towers: CLIP's loss, and the supervised one where several texts fit an image.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; several
positives as in Khosla et al., "Supervised Contrastive Learning", 2020 (L_out), across two towers as in UniCL, Yang et
al., 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.two_towers import ImageTower, TwoTowers

from .distributed import gather_with_gradients
from .train import Batch, Losses, Task


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, positives: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over the cosines of N images and U texts.

    Args:
        image_embeds, text_embeds: [N, D] and [U, D], unit length.
        scale: multiplies the cosines, the inverse of the temperature.
        positives: [N, U] bool, which texts fit an image, at least one in every row; a row's share is the same for all
            of them, and texts that fit no image are negatives alone. None: row i of both sides is the same product.
    """
    logits = scale * image_embeds.float() @ text_embeds.float().T
    if positives is None:
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    targets = positives.float()
    by_image = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    shown = positives.any(0)
    of_texts = targets.T[shown]
    by_text = F.cross_entropy(logits.T[shown], of_texts / of_texts.sum(1, keepdim=True))
    return (by_image + by_text) / 2


class TowersTask(Task[TwoTowers[ImageTower]]):
    """The forward pass and loss of two towers, over the pairs of all processes."""

    name = "contrastive"

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """image_embeds and text_embeds [B, D], and the scale of their cosines."""
        outputs = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
        return dict(zip(("image_embeds", "text_embeds", "scale"), outputs, strict=True))

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """The contrastive loss."""
        image_embeds, text_embeds = (gather_with_gradients(outputs[name]) for name in ("image_embeds", "text_embeds"))
        return {"contrastive": contrastive_loss(image_embeds, text_embeds, outputs["scale"], self.positives(batch))}

    def positives(self, batch: Batch) -> Tensor | None:
        """Which texts of all processes fit which images; None: each its own."""
        return None

    def scalars(self, outputs: Batch) -> Batch:
        """The scale of the cosines."""
        return {"logit_scale": outputs["scale"].detach()}
