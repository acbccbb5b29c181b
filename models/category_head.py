"""The category head: two embeddings, fused by attention, to class logits.

Image and text embedding -> attention -> MLP -> a logit per class, or one per feature of binary feature codes, from
which `class_logits` reads the classes.  A missing image or title is legal input; a learned "absent" embedding takes its
place, so the head knows the difference between "no title" and "a title that says nothing".  Each way to ask has a
temperature of its own, fitted once training is over (Guo et al., ICML 2017), and a probability from which an answer is
filed without a person.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from .attention import SelfAttention

WAYS = {"image + title": (True, True), "image": (True, False), "title": (False, True)}
"""The ways to ask about a product, and whether each gives its image and its title."""
NEVER = 2.0  # a probability that no answer has


class CategoryHeadConfig(BaseModel):
    """Widths of the category head."""

    model_config = ConfigDict(extra="forbid")

    embed_dim: PositiveInt  # width D of both embeddings
    num_classes: PositiveInt
    num_features: PositiveInt | None = None  # F of the classes' binary feature codes; None: a logit per class
    hidden_dim: PositiveInt = 512
    num_heads: PositiveInt = 4
    dropout: NonNegativeFloat = 0.1


class CategoryHead(nn.Module):
    """Unit-length embeddings of image and title to logits over the classes, or over the features of their codes.

    Args:
        config: widths.
        codes: [C, F] of 0 and 1 for a head of F features; a head that is loaded finds them in its state.

    Attributes:
        temperature: [3], what divides the logits of each of the `WAYS` to ask; 1 until it is fitted.
        sure_from: [3], the probability from which an answer can be filed unseen; `NEVER` until it is fitted.
    """

    codes: Tensor | None
    temperature: Tensor
    sure_from: Tensor

    def __init__(self, config: CategoryHeadConfig, codes: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if config.num_features is not None:
            shape = (config.num_classes, config.num_features)
            codes = torch.zeros(shape) if codes is None else codes.float()
            if codes.shape != shape:
                raise ValueError(f"codes must be {list(shape)}; got {list(codes.shape)}")
        elif codes is not None:
            raise ValueError("codes were given to a head whose config has no num_features")
        self.register_buffer("codes", codes)
        self.register_buffer("temperature", torch.ones(len(WAYS)))
        self.register_buffer("sure_from", torch.full((len(WAYS),), NEVER))
        width = config.embed_dim
        # Unit-length embeddings have entries of size 1/sqrt(D); LayerNorm brings them to the scale of the tokens.
        self.image_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.text_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.absent_image = nn.Parameter(0.02 * torch.randn(width))
        self.absent_text = nn.Parameter(0.02 * torch.randn(width))
        self.fusion = SelfAttention(width, config.num_heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, config.hidden_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, config.num_features or config.num_classes),
        )

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, image_present: Tensor, text_present: Tensor) -> Tensor:
        """Logits of each row, as they were trained: `log_probability` calibrates.

        Args:
            image_embeds, text_embeds: [B, D] float32, unit length; what stands in an absent row does not matter.
            image_present, text_present: [B, 1] bool.

        Returns:
            [B, C] logits of the classes, or [B, F] of the features of their codes.
        """
        image_token = torch.where(image_present, self.image_projection(image_embeds), self.absent_image)
        text_token = torch.where(text_present, self.text_projection(text_embeds), self.absent_text)
        tokens = self.fusion(torch.stack([image_token, text_token], dim=1))
        return self.mlp(tokens.flatten(1))

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logits of the classes [B, C] from those that `forward` gives.

        For codes they are, up to a constant a row that soft-max does not see, the log-likelihood of each class's code
        under independent features: Σ_f log σ(±z_f), + where the code has a 1.
        """
        return logits if self.codes is None else logits.float() @ self.codes.T

    def log_probability(self, logits: Tensor, way: Tensor | int) -> Tensor:
        """Calibrated log-probabilities of the classes [B, C].

        Args:
            logits: what `forward` gives.
            way: [B] int64, by `way_asked`, or the `way_number` of all rows.
        """
        return torch.log_softmax(self.class_logits(logits).float() / self.temperature[way].reshape(-1, 1), dim=-1)


def way_number(way: str) -> int:
    """The place of one of the `WAYS`."""
    return list(WAYS).index(way)


def way_asked(image_present: Tensor, text_present: Tensor) -> Tensor:
    """Which of the `WAYS` each row is asked in, [B] int64; what is present, [B, 1] bool each."""
    return (2 - image_present.long() - (image_present & text_present).long()).squeeze(1)
