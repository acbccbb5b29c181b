"""Plain float64 formulas that the kernels are tested against: dense targets, no fusion, nothing clever.

Everything is computed on a dense [rows, classes] target distribution in float64. The loss is differentiable, so that
autograd checks the closed-form gradient, which in turn stays finite where autograd meets 0 * inf (a probability of
exactly one with gamma below one). Focal loss: Lin et al., ICCV 2017, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def target_distribution(labels: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, classes: int) -> Tensor:
    """Dense targets, float64 [*labels.shape, classes]: the weights of equal neighbour ids add up."""
    ids = neighbour_ids[labels].long()
    target = torch.zeros(*labels.shape, classes, dtype=torch.float64, device=labels.device)
    return target.scatter_add_(-1, ids, neighbour_weights[labels].double())


def label_kl(
    logits: Tensor, candidates: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL(target of the candidate || softmax(logits / temperature)), float64 of candidates' shape ([B] or [B, M])."""
    log_q = torch.log_softmax(logits.double() / temperature, dim=-1)
    if candidates.dim() == 2:
        log_q = log_q.unsqueeze(1)
    target = target_distribution(candidates, neighbour_ids, neighbour_weights, logits.shape[-1])
    # 0 * log 0 counts as 0 on both sides: mask the logarithms where the target has no mass.
    log_q = torch.where(target != 0, log_q, 0.0)
    return (torch.xlogy(target, target) - target * log_q).sum(-1)


def focal_label_kl(
    logits: Tensor,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    *,
    gamma: float = 2.0,
    kl_weight: float = 1.0,
    temperature: float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Loss of each row, float64 [B], differentiable with respect to the logits; ignored rows are 0."""
    counted = labels != ignore_index
    label = torch.where(counted, labels, 0).long()
    log_p = torch.log_softmax(logits.double(), dim=-1).gather(1, label[:, None])[:, 0]
    focal = -((-torch.expm1(log_p)) ** gamma) * log_p
    if class_weight is not None:
        focal = focal * class_weight.double()[label]
    kl = label_kl(logits, label, neighbour_ids, neighbour_weights, temperature=temperature)
    return torch.where(counted, focal + kl_weight * kl, 0.0)


def focal_label_kl_gradient(
    logits: Tensor,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    *,
    gamma: float = 2.0,
    kl_weight: float = 1.0,
    temperature: float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Gradient of every row's loss with respect to its own logits in closed form, float64 [B, C].

    With p the probability of the label and u = -log p, the focal term's derivative is
    (1-p)^gamma * (1 + gamma * p * u / (1-p)) * (softmax - onehot), and u / (1-p) tends to 1 as p tends to 1.
    """
    classes = logits.shape[-1]
    counted = labels != ignore_index
    label = torch.where(counted, labels, 0).long()
    log_softmax = torch.log_softmax(logits.double(), dim=-1)
    log_p = log_softmax.gather(1, label[:, None])
    probability, rest = log_p.exp(), -torch.expm1(log_p)
    ratio = torch.where(rest > 0, -log_p / rest, 1.0)
    pull = torch.where(probability > 0, gamma * probability * ratio, 0.0)
    slope = rest**gamma * (1 + pull)
    if class_weight is not None:
        slope = slope * class_weight.double()[label][:, None]
    onehot = torch.nn.functional.one_hot(label, classes)
    target = target_distribution(label, neighbour_ids, neighbour_weights, classes)
    q = torch.softmax(logits.double() / temperature, dim=-1)
    gradient = slope * (log_softmax.exp() - onehot) + kl_weight / temperature * (
        target.sum(-1, keepdim=True) * q - target
    )
    return torch.where(counted[:, None], gradient, 0.0)
