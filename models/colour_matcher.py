"""The colour matcher: a tower for photos, a tower for labels, and a head that looks at all of a product together.

Both towers give unit-length embeddings of one width; the head scales each side by batch norm (at serving time a factor
and a shift) and hands them to the units of `models/matcher.py`. Labels that repeat within a batch are encoded once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .colour_tower import ColourTower
from .encoders import TextEncoder
from .matcher import Matcher, MatcherConfig


class ColourHead(nn.Module):
    """Embeddings of photos and labels to the logits of every pair within a product.

    In the precision of its weights whatever `torch.autocast` says: its matrices are so small that casting them takes
    longer than bfloat16 saves. A training step of the head alone takes half the time without, on a CPU with AMX.
    """

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.image_norm = nn.BatchNorm1d(config.embed_dim)
        self.label_norm = nn.BatchNorm1d(config.embed_dim)
        self.matcher = Matcher(config)

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, cu_images: Tensor, cu_labels: Tensor) -> Tensor:
        """Logits of a ragged batch of P products.

        Args:
            image_embeds, label_embeds: [N, D], [M, D], unit length, product after product.
            cu_images, cu_labels: [P + 1] int32, cumulative numbers of photos and of labels.

        Returns:
            [Σ n·m] float32, packed as in `models.matcher.Matcher`.
        """
        with torch.autocast(image_embeds.device.type, enabled=False):
            precision = self.image_norm.weight.dtype
            images = self.image_norm(image_embeds.to(precision))
            labels = self.label_norm(label_embeds.to(precision))
            return self.matcher(images, labels, cu_images, cu_labels)

    def padded(
        self, image_embeds: Tensor, label_embeds: Tensor, image_present: Tensor, label_present: Tensor
    ) -> Tensor:
        """The same for a rectangular batch: [P, n, D], [P, m, D], [P, n] and [P, m] bool -> logits [P, n, m]."""
        images = self.image_norm(image_embeds.transpose(1, 2)).transpose(1, 2)
        labels = self.label_norm(label_embeds.transpose(1, 2)).transpose(1, 2)
        return self.matcher.padded(images, labels, image_present, label_present)


class ColourMatcher(nn.Module):
    """Photos and labels of products to the logits of every pair within a product.

    Args:
        image_encoder, text_encoder: of the same embedding width.
        head: of that width.

    Raises:
        ValueError: the widths differ.
    """

    INPUTS = ("pixel_values", "input_ids", "attention_mask", "label_index", "cu_images", "cu_labels")

    def __init__(self, image_encoder: ColourTower, text_encoder: TextEncoder, head: ColourHead) -> None:
        super().__init__()
        widths = (image_encoder.config.embed_dim, text_encoder.config.projection_dim, head.matcher.config.embed_dim)
        if len(set(widths)) > 1:
            raise ValueError(f"image tower, label tower and matcher have widths {widths}; they must be one")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head = head

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_index: Tensor,
        cu_images: Tensor,
        cu_labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a ragged batch of P products with N photos and M labels, U of them different.

        Args:
            pixel_values: [N, H, W, 3] uint8.
            input_ids, attention_mask: [U, L] int64.
            label_index: [M] int64, which of the U each label is.
            cu_images, cu_labels: [P + 1] int32, cumulative numbers of photos and of labels.

        Returns:
            Logits [Σ n·m] float32, image_embeds [N, D] and label_embeds [U, D].
        """
        image_embeds = self.image_encoder(pixel_values)
        label_embeds = self.text_encoder(input_ids, attention_mask)
        return self.head(image_embeds, label_embeds[label_index], cu_images, cu_labels), image_embeds, label_embeds
