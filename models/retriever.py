"""EI-CLIP (Ma et al., CVPR 2022): two towers whose text side sums a description with gated entities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .encoders import ImageEncoder, TextEncoder
from .entities import EntityTower, text_embedding
from .two_towers import TwoTowers


class Retriever(TwoTowers[ImageEncoder]):
    """Images, and texts with entities, in one space.

    Args:
        image_encoder, text_encoder: embed to the same width.
        entities: of that width; None for plain CLIP, whose texts are descriptions alone.

    Raises:
        ValueError: the widths differ.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, entities: EntityTower | None = None
    ) -> None:
        super().__init__(image_encoder, text_encoder)
        self.entities = entities
        widths = {image_encoder.config.projection_dim, text_encoder.config.projection_dim}
        widths |= {entities.config.embed_dim} if entities is not None else set()
        if len(widths) > 1:
            raise ValueError(
                f"image encoder, text encoder and entities embed to {', '.join(map(str, sorted(widths)))} "
                "numbers; they must agree: take both encoders from one model, or set embed_dim to match"
            )

    def forward(  # type: ignore[override]
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, described: Tensor, entity_ids: Tensor
    ) -> dict[str, Tensor]:
        """What the three contrastive losses compare.

        Args:
            images: [B, H, W, 3] uint8, or [B, C] float, what the image encoder's backbone makes of them.
            input_ids, attention_mask: [B, L] int64, descriptions.
            described: [B, 1] bool, whether there is one.
            entity_ids: [B, E] int64, 0 for absent or unknown.

        Returns:
            image_embeds, text_embeds (E^T), description_embeds (E^D) and entity_embeds (Ê^A), [B, D] of unit length,
            and the scale of their cosines.
        """
        descriptions = self.text_encoder(input_ids, attention_mask)
        outputs = {"image_embeds": self.embed_image(images), "description_embeds": descriptions}
        if self.entities is not None:
            entities = self.entities(entity_ids)
            outputs["text_embeds"] = text_embedding(descriptions, described, entities)
            outputs["entity_embeds"] = F.normalize(entities.sum(), dim=-1)
        return outputs | {"scale": self.scale}

    def embed_image(self, images: Tensor) -> Tensor:
        """[B, D] of unit length; images as in `forward`."""
        if images.dtype == torch.uint8:
            return self.image_encoder(images)
        return F.normalize(self.image_encoder.projection(images).float(), dim=-1)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor, described: Tensor, entity_ids: Tensor) -> Tensor:
        """E^T [B, D] of unit length; arguments as in `forward`."""
        descriptions = self.text_encoder(input_ids, attention_mask)
        if self.entities is None:
            return descriptions
        return text_embedding(descriptions, described, self.entities(entity_ids))
