"""The weights of several losses: equal, or adapted in every step so that the task that lags weighs more.

FashionBERT weighs its L losses by the minimum of Σ ½ (αL - g_i²) w_i² under Σ w_i = 1, where g_i is the size of task
i's gradient, normalised over the tasks: w_i ∝ 1 / (αL - g_i²). With α >= 1 every weight is positive, for g_i <= 1.
Gradients are measured on parameters that all tasks share; what costs no further backward pass takes the softmax of the
losses in their place.

Source: Gao et al., "FashionBERT", SIGIR 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .train import Losses


def adaptive_weights(sizes: Tensor, alpha: float = 1.0) -> Tensor:
    """The weights of L losses.

    Args:
        sizes: [L], of each task's gradient, between 0 and 1.
        alpha: how much of the even share every task keeps, at least 1; the larger, the more even.

    Returns:
        [L], positive, of sum 1.

    Raises:
        ValueError: alpha is below 1.
    """
    if alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; below 1 a weight may be negative")
    raw = 1 / (alpha * len(sizes) - sizes**2)
    return raw / raw.sum()


class EqualWeights(nn.Module):
    """Every loss weighs the same, and their weights sum to 1 as those of the adaptive loss do."""

    def forward(self, losses: Losses) -> Losses:
        """The weight of each loss."""
        return {name: torch.full_like(loss, 1 / len(losses)) for name, loss in losses.items()}


class AdaptiveLoss(nn.Module):
    """The adaptive loss with the softmax of the losses for gradient sizes.

    Args:
        alpha: see `adaptive_weights`.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, losses: Losses) -> Losses:
        """The weight of each loss, no gradient attached; the same on every process."""
        weights = adaptive_weights(self.sizes(losses), self.alpha)
        return dict(zip(losses, weights, strict=True))

    def sizes(self, losses: Losses) -> Tensor:
        """[L] sizes of the tasks' gradients."""
        return torch.softmax(mean_over_processes(torch.stack([loss.detach() for loss in losses.values()])), dim=0)


class GradientAdaptiveLoss(AdaptiveLoss):
    """The adaptive loss with true gradient norms, as shares of their sum.

    Args:
        shared: parameters that every task's gradient reaches; those of the last shared layer are enough, and the
            backward passes then end there.
        alpha: see `adaptive_weights`.
    """

    def __init__(self, shared: Iterable[nn.Parameter], alpha: float = 1.0) -> None:
        super().__init__(alpha)
        self.shared = tuple(shared)  # a tuple: they are the model's, not this module's

    def sizes(self, losses: Losses) -> Tensor:
        """[L] norms of the gradients on the shared parameters, of sum 1."""
        norms = []
        for loss in losses.values():
            gradients = torch.autograd.grad(loss, self.shared, retain_graph=True, allow_unused=True)
            reached = [gradient.float().norm() for gradient in gradients if gradient is not None]
            norms.append(torch.stack([*reached, loss.new_zeros(())]).norm())
        found = mean_over_processes(torch.stack(norms).detach())
        return found / found.sum().clamp(min=torch.finfo(found.dtype).tiny)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of what each process has; the values themselves where there is one."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
