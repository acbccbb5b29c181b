"""The whole categorizer, encoders and head, as one module: what end-to-end fine-tuning trains and parity compares."""

from __future__ import annotations

from torch import Tensor, nn

from .category_head import CategoryHead
from .encoders import ImageEncoder, TextEncoder


class Categorizer(nn.Module):
    """Image and title to the logits of the head."""

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, head: CategoryHead) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head = head

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_present: Tensor,
        text_present: Tensor,
    ) -> Tensor:
        """Logits of each row.

        Args:
            pixel_values: [B, H, W, 3] uint8.
            input_ids, attention_mask: [B, L] int64.
            image_present, text_present: [W·B, 1] bool: W ways to ask about every row, all rows one way after all rows
                another. Encoders run once, whatever the ways.

        Returns:
            [W·B, C] logits of the classes, or [W·B, F] of the features of their codes (`CategoryHead.class_logits`).
        """
        image_embeds = self.image_encoder(pixel_values)
        text_embeds = self.text_encoder(input_ids, attention_mask)
        ways = len(image_present) // len(pixel_values)
        return self.head(image_embeds.repeat(ways, 1), text_embeds.repeat(ways, 1), image_present, text_present)
