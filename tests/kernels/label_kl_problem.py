"""Random problems for kernel 1 and the float64 answer to each, shared by its test files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels.label_kl_objective import Objective


@dataclass(frozen=True)
class Problem:
    """Logits [B, C], labels [B] and a neighbour table [C, K+1], with the label itself in slot 0."""

    logits: Tensor
    labels: Tensor
    neighbour_ids: Tensor
    neighbour_weights: Tensor

    @classmethod
    def random(
        cls,
        rows: int,
        classes: int,
        entries: int = 5,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
        scale: float = 3.0,
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(rows, classes, generator=generator)
        labels = torch.randint(0, classes, (rows,), generator=generator)
        ids = torch.randint(0, classes, (classes, entries), generator=generator, dtype=torch.int32)
        ids[:, 0] = torch.arange(classes)
        weights = torch.rand(classes, entries, generator=generator) + 0.05
        weights /= weights.sum(1, keepdim=True)
        return cls(logits.to(device, dtype), labels.to(device), ids.to(device), weights.to(device))

    @property
    def table(self) -> tuple[Tensor, Tensor]:
        return self.neighbour_ids, self.neighbour_weights

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.labels, self.neighbour_ids, self.neighbour_weights

    @property
    def objective(self) -> Objective:
        return Objective(*self.arguments)

    def changed(self, **fields: Tensor) -> Problem:
        return replace(self, **fields)

    def loss(self, **settings: Any) -> Tensor:
        """float64 [B]."""
        return reference.focal_label_kl(self.logits, *self.arguments, **settings)

    def gradient(self, **settings: Any) -> Tensor:
        """float64 [B, C]: of each row's loss with respect to its logits."""
        return reference.focal_label_kl_gradient(self.logits, *self.arguments, **settings)


def dense_loss(logits: Tensor, problem: Problem, gamma: float, kl_weight: float, temperature: float) -> Tensor:
    """The loss of each row as one writes it in torch, in the logits' own dtype: the yardstick for rounding."""
    log_p = torch.log_softmax(logits, dim=-1).gather(1, problem.labels[:, None])[:, 0]
    target = reference.target_distribution(problem.labels, *problem.table, logits.shape[1]).to(logits.dtype)
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    kl = torch.nn.functional.kl_div(log_q, target, reduction="none").sum(-1)
    return -((1 - log_p.exp()) ** gamma) * log_p + kl_weight * kl


def norm_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected||, in float64."""
    expected = expected.detach().double()
    return float((value.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30))
