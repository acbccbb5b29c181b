"""Entity encoders, gates and their sum with the description: the text tower of EI-CLIP (Ma et al., CVPR 2022).

    E^T = E^D + Σ_k w_k · h_k(a_k),   w_k = sigmoid(MLP(h_k(a_k)))

"diesel" is a brand, not a fuel: each entity has an embedding of its own instead of pieces of words.  Notable: all terms
have unit length before they are summed, so that a gate alone says how much its group counts; an absent or unknown
entity (number 0) has no embedding at all, and adds exactly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F


class EntityConfig(BaseModel):
    """What is needed to rebuild an entity tower.

    `groups`: at least one, in the order of the vocabulary.  `sizes`: how many values each has, number 0 not counted.
    `gated`: learned gates; otherwise every w_k is 1.
    """

    model_config = ConfigDict(extra="forbid")

    groups: tuple[str, ...]
    sizes: tuple[PositiveInt, ...]
    embed_dim: PositiveInt
    entity_dim: PositiveInt = 128
    gated: bool = True


@dataclass(frozen=True)
class EntityEmbeddings:
    """Entities of B texts.

    Attributes:
        embeds: [B, E, D] h_k, unit length, zero where the entity is absent.
        gates: [B, E] w_k, zero where the entity is absent.
    """

    embeds: Tensor
    gates: Tensor

    def sum(self) -> Tensor:
        """[B, D] Ê^A = Σ_k w_k · h_k, not normalised."""
        return (self.gates.unsqueeze(-1) * self.embeds).sum(1)


class EntityEncoder(nn.Module):
    """h_k: numbers of one group's entities to embeddings, a table and an MLP."""

    def __init__(self, size: int, entity_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size + 1, entity_dim, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(entity_dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, numbers: Tensor) -> Tensor:
        """[B] int64 -> [B, D] float32, unit length."""
        return F.normalize(self.mlp(self.table(numbers)).float(), dim=-1)


class EntityTower(nn.Module):
    """All groups: embeddings and gates of the entities of a text.

    Raises:
        ValueError: there is not one size for every group.
    """

    def __init__(self, config: EntityConfig) -> None:
        super().__init__()
        if len(config.groups) != len(config.sizes):
            raise ValueError(f"{len(config.groups)} entity groups and {len(config.sizes)} sizes")
        self.config = config
        width = config.embed_dim
        self.encoders = nn.ModuleList(EntityEncoder(size, config.entity_dim, width) for size in config.sizes)
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, 1))
            for _ in (config.groups if config.gated else ())
        )

    def forward(self, entity_ids: Tensor) -> EntityEmbeddings:
        """[B, E] int64, 0 for absent or unknown -> embeddings and gates."""
        present = (entity_ids > 0).float()
        embeds = [encoder(entity_ids[:, k]) for k, encoder in enumerate(self.encoders)]
        if self.config.gated:
            gates = [gate(embed).squeeze(-1).float().sigmoid() for gate, embed in zip(self.gates, embeds, strict=True)]
            weights = torch.stack(gates, 1) * present
        else:
            weights = present
        return EntityEmbeddings(torch.stack(embeds, 1) * present.unsqueeze(-1), weights)

    @torch.no_grad()
    def mean_gates(self, entity_ids: Tensor) -> dict[str, float]:
        """The mean gate of every group over the texts that have it; a group that none has is left out."""
        gates, present = self(entity_ids).gates, entity_ids > 0
        return {
            group: float(gates[present[:, k], k].mean())
            for k, group in enumerate(self.config.groups)
            if bool(present[:, k].any())
        }


def text_embedding(description_embeds: Tensor, described: Tensor, entities: EntityEmbeddings) -> Tensor:
    """E^T of B texts.

    Args:
        description_embeds: [B, D] E^D, unit length.
        described: [B, 1] bool, whether there is a description; without one the entities speak alone.
        entities: of the same texts.

    Returns:
        [B, D] float32, unit length; zero where there is neither description nor entity.
    """
    return F.normalize(description_embeds.float() * described + entities.sum(), dim=-1)
