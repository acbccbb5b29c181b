"""Focal + label-neighbour KL in vectorised torch: what CPU tensors take, and any device in float64.

Same closed form as the Triton kernels: one log-softmax gives loss and gradient, written where the gradient is wanted
(over the logits, if need be), then exponentiated and scaled there; the K+1 target entries are gathered and scattered,
no dense [B, C] target exists. float64 stays float64 (gradcheck); every other type is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.label_kl_objective import Objective


def _working_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def label_kl_rows(
    logits: Tensor, candidates: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, temperature: float
) -> Tensor:
    """KL(target of candidate || softmax(logits / temperature)) for candidates int [B, M]; returns [B, M]."""
    dtype = _working_dtype(logits)
    ids = neighbour_ids[candidates].long()
    weights = neighbour_weights[candidates].to(dtype)
    log_q = torch.log_softmax(logits.to(dtype) / temperature, dim=1)
    return _divergence(ids, weights, log_q.gather(1, ids.flatten(1)).view(ids.shape))


def _divergence(ids: Tensor, weights: Tensor, log_q: Tensor) -> Tensor:
    """KL(target || q) from the target's entries and log q at them, all [..., K+1]; returns [...]."""
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    # Target mass of each entry's id: equal ids carry the sum of their weights.
    mass = (same * weights.unsqueeze(-2)).sum(-1)
    return torch.where(weights != 0, weights * (torch.log(mass) - log_q), 0.0).sum(-1)


def focal_label_kl_rows(
    logits: Tensor, gradient: Tensor | None, objective: Objective, gradient_scale: float | Tensor, classes: int
) -> Tensor:
    """Loss of each row, [B]; its gradient times `gradient_scale` goes into `gradient`, which may be `logits`.

    `gradient_scale` may be a tensor [B], the upstream gradient of each row. Columns from `classes` on are padding.
    """
    labels, neighbour_ids, neighbour_weights, class_weight, gamma, kl_weight, temperature, ignore_index = objective
    dtype = _working_dtype(logits)
    counted = labels != ignore_index
    label = torch.where(counted, labels, 0).long()[:, None]
    ids = neighbour_ids[label[:, 0]].long()
    weights = neighbour_weights[label[:, 0]].to(dtype)
    padding, logits = logits[:, classes:], logits[:, :classes]

    soft = logits.to(dtype) / temperature if temperature != 1.0 else None  # before the logits are overwritten
    if gradient is not None and gradient.dtype == dtype and gradient.is_contiguous() and not padding.numel():
        working = gradient
        torch.log_softmax(logits, 1, out=working)
    else:
        working = torch.log_softmax(logits.to(dtype), 1)
    log_p = working.gather(1, label)[:, 0]
    if soft is None:
        log_q = working.gather(1, ids)
    else:
        torch.log_softmax(soft, 1, out=soft)
        log_q = soft.gather(1, ids)

    probability, rest = log_p.exp(), -torch.expm1(log_p)
    focal_weight = rest**gamma
    if class_weight is not None:
        focal_weight *= class_weight.to(dtype)[label[:, 0]]
    loss = torch.where(counted, focal_weight * -log_p + kl_weight * _divergence(ids, weights, log_q), 0.0)
    if gradient is None:
        return loss

    ratio = torch.where(rest > 0, -log_p / rest, 1.0)
    slope = focal_weight * (1 + torch.where(probability > 0, gamma * probability * ratio, 0.0)) * gradient_scale
    pull = weights * (kl_weight / temperature * gradient_scale * torch.ones_like(slope))[:, None]
    of_softmax = pull.sum(1) if soft is not None else slope + pull.sum(1)
    working.exp_().mul_((slope if soft is not None else of_softmax)[:, None])
    if soft is not None:
        working += soft.exp_().mul_(of_softmax[:, None])
    working.scatter_add_(1, label, -slope[:, None]).scatter_add_(1, ids, -pull)
    working.index_fill_(0, (~counted).nonzero()[:, 0], 0.0)
    if working is not gradient:
        gradient[:, :classes] = working
        gradient[:, classes:] = 0.0
    return loss


def _row_chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows whose float32 logits stay below 64 MiB."""
    step = max(1, 2**24 // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def linear_focal_label_kl_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective) -> Tensor:
    """Loss of each row of hidden @ weight.T + bias, [B]; the logits exist for some rows at a time."""
    loss = hidden.new_empty(len(hidden), dtype=_working_dtype(hidden))
    for rows in _row_chunks(len(hidden), len(weight)):
        logits = torch.nn.functional.linear(hidden[rows], weight, bias)
        loss[rows] = focal_label_kl_rows(logits, None, objective.of_rows(rows), 1.0, len(weight))
    return loss


def linear_focal_label_kl_gradients(
    upstream: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(upstream * loss) with respect to hidden, weight and bias; logits are computed a second time."""
    dtype = _working_dtype(hidden)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight, dtype=dtype)
    bias_gradient = weight.new_zeros(len(weight), dtype=dtype)
    for rows in _row_chunks(len(hidden), len(weight)):
        gradient = torch.nn.functional.linear(hidden[rows], weight, bias)
        focal_label_kl_rows(gradient, gradient, objective.of_rows(rows), upstream[rows], len(weight))
        hidden_gradient[rows] = gradient @ weight
        weight_gradient += gradient.T @ hidden[rows]
        bias_gradient += gradient.sum(0, dtype=dtype)
    return hidden_gradient, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype)
