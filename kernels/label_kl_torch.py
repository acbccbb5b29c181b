"""Focal + label-neighbour KL in vectorised torch: what CPU tensors take, and any device in float64.

Same closed form as the Triton kernels: one softmax gives loss and gradient, the K+1 target entries are gathered and
scattered, no dense [B, C] target exists. float64 stays float64 (gradcheck); every other type is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _working_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _merged_weights(ids: Tensor, weights: Tensor) -> Tensor:
    """Target mass of each entry's id, [..., K+1]: equal ids carry the sum of their weights."""
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    return (same * weights.unsqueeze(-2)).sum(-1)


def label_kl_rows(
    logits: Tensor, candidates: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, temperature: float
) -> Tensor:
    """KL(target of candidate || softmax(logits / temperature)) for candidates int [B, M]; returns [B, M]."""
    dtype = _working_dtype(logits)
    scaled = logits.to(dtype) / temperature
    ids = neighbour_ids[candidates].long()
    weights = neighbour_weights[candidates].to(dtype)
    rows, count, entries = ids.shape
    neighbours = scaled.gather(1, ids.reshape(rows, count * entries)).reshape(ids.shape)
    log_q = neighbours - torch.logsumexp(scaled, dim=1)[:, None, None]
    terms = weights * (torch.log(_merged_weights(ids, weights)) - log_q)
    return torch.where(weights != 0, terms, 0.0).sum(-1)


def focal_label_kl_rows(
    logits: Tensor,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    class_weight: Tensor | None,
    gamma: float,
    kl_weight: float,
    temperature: float,
    ignore_index: int,
    gradient_scale: float | Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Loss of each row [B] and, unless `gradient_scale` is None, the gradient of loss * gradient_scale.

    The gradient has the logits' dtype. `gradient_scale` may be a tensor [B, 1]: the upstream gradient of each row.
    """
    dtype = _working_dtype(logits)
    logits_dtype, logits = logits.dtype, logits.to(dtype)
    counted = labels != ignore_index
    label = torch.where(counted, labels, 0).long()
    ids = neighbour_ids[label].long()
    weights = neighbour_weights[label].to(dtype)

    log_p = logits.gather(1, label[:, None]) - torch.logsumexp(logits, dim=1, keepdim=True)
    # For a label that is all but certain, log_p rounds to a tiny positive number now and then.
    log_p = log_p.clamp(max=0.0)
    probability, rest = log_p.exp(), -torch.expm1(log_p)
    focal_weight = rest**gamma
    alpha = 1.0 if class_weight is None else class_weight.to(dtype)[label][:, None]
    focal = alpha * focal_weight * -log_p

    scaled = logits if temperature == 1.0 else logits / temperature
    merged = _merged_weights(ids, weights)
    log_q = scaled.gather(1, ids) - torch.logsumexp(scaled, dim=1, keepdim=True)
    kl = torch.where(weights != 0, weights * (torch.log(merged) - log_q), 0.0).sum(1, keepdim=True)
    loss = torch.where(counted[:, None], focal + kl_weight * kl, 0.0)[:, 0]
    if gradient_scale is None:
        return loss, None

    ratio = torch.where(rest > 0, -log_p / rest, 1.0)
    slope = alpha * focal_weight * (1 + torch.where(probability > 0, gamma * probability * ratio, 0.0))
    pull = kl_weight / temperature * weights
    if temperature == 1.0:
        gradient = torch.softmax(logits, dim=1).mul_(slope + pull.sum(1, keepdim=True))
    else:
        gradient = torch.softmax(logits, dim=1).mul_(slope)
        gradient += torch.softmax(scaled, dim=1).mul_(pull.sum(1, keepdim=True))
    gradient.scatter_add_(1, label[:, None], -slope)
    gradient.scatter_add_(1, ids, -pull)
    gradient *= gradient_scale
    gradient.masked_fill_(~counted[:, None], 0.0)
    return loss, gradient.to(logits_dtype)


def _row_chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows whose float32 logits stay below 64 MiB."""
    step = max(1, 2**24 // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def linear_focal_label_kl_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    class_weight: Tensor | None,
    gamma: float,
    kl_weight: float,
    temperature: float,
    ignore_index: int,
) -> Tensor:
    """Loss of each row of hidden @ weight.T + bias, [B]; the logits exist for some rows at a time."""
    loss = hidden.new_empty(len(hidden), dtype=_working_dtype(hidden))
    for rows in _row_chunks(len(hidden), len(weight)):
        logits = torch.nn.functional.linear(hidden[rows], weight, bias)
        loss[rows], _ = focal_label_kl_rows(
            logits,
            labels[rows],
            neighbour_ids,
            neighbour_weights,
            class_weight,
            gamma,
            kl_weight,
            temperature,
            ignore_index,
            None,
        )
    return loss


def linear_focal_label_kl_gradients(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    class_weight: Tensor | None,
    gamma: float,
    kl_weight: float,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(upstream * loss) with respect to hidden, weight and bias; logits are computed a second time."""
    dtype = _working_dtype(hidden)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight, dtype=dtype)
    bias_gradient = weight.new_zeros(len(weight), dtype=dtype)
    for rows in _row_chunks(len(hidden), len(weight)):
        logits = torch.nn.functional.linear(hidden[rows], weight, bias)
        _, gradient = focal_label_kl_rows(
            logits,
            labels[rows],
            neighbour_ids,
            neighbour_weights,
            class_weight,
            gamma,
            kl_weight,
            temperature,
            ignore_index,
            upstream[rows, None],
        )
        assert gradient is not None
        hidden_gradient[rows] = gradient @ weight
        weight_gradient += gradient.T @ hidden[rows]
        bias_gradient += gradient.sum(0, dtype=dtype)
    return hidden_gradient, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype)
