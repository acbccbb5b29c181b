"""Losses of the categorizer: focal, focal + λ·KL against a sparse label distribution, and the multi-label loss of
binary codes.

Notable: a target distribution is a row of a neighbour table (K+1 ids and weights, `training/labels.py`), so the KL
needs K+1 gathered log-probabilities and one log-sum-exp instead of a [B, C] target. `LabelLoss` is the one front door:
rows that live in the table go to `kernels.label_kl` (fused on CUDA, vectorised torch on CPU); `uniform`, whose mass
lies on every class, has a closed form here. All reductions run in float32 at least, whatever the dtype of the logits.
Sources: focal loss, Lin et al., ICCV 2017; effective number of samples, Cui et al., CVPR 2019.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.label_kl import focal_label_kl
from training.labels import NeighbourTable

Reduction = Literal["mean", "sum", "none"]
ClassWeighting = Literal["none", "inverse_sqrt", "effective_number"]
IGNORE_INDEX = -100


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Focal loss −w_c·(1 − p_c)^γ·log p_c with p = softmax(logits); γ = 0 is cross-entropy.

    Args:
        logits: [B, C], any floating dtype; computed in float32, or float64 when given so.
        labels: [B] int64, 0 … C−1 or `ignore_index`.
        gamma: focusing exponent γ ≥ 0.
        class_weight: [C], finite and ≥ 0; multiplies the loss of each row of that class.
        reduction: "mean" divides the sum by the number of rows that are not ignored (not by the sum of their class
            weights); a batch in which every row is ignored gives 0.
        ignore_index: rows with this label contribute nothing.

    Returns:
        A scalar, or [B] with 0 in ignored rows for "none".

    Raises:
        ValueError: on wrong shapes, a label out of range, or a γ that is negative or not finite; the message names the
            value.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4 (multi-class form).
    """
    check_gamma(gamma)
    valid = check_labels(logits, labels, ignore_index)
    log_probability = F.log_softmax(at_least_float32(logits), dim=-1)
    log_p = log_probability.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    loss = -focal_modulation(log_p, gamma) * log_p
    if class_weight is not None:
        check_class_weight(class_weight, logits.shape[1])
        loss = loss * class_weight.to(loss)[labels.clamp(min=0)]
    return reduce_rows(loss, valid, reduction)


def focal_modulation(log_p: Tensor, gamma: float) -> Tensor:
    """(1 − p)^γ from log p, without cancellation near p = 1 and with a finite gradient at p = 1 for 0 < γ < 1."""
    if gamma == 0:
        return torch.ones_like(log_p)
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma


class LabelLoss(nn.Module):
    """Focal loss + λ·KL(p_c ‖ softmax(logits)), p_c the target distribution of the true class: the loss of
    `categorize`.

    Args:
        targets: a target distribution of `training/labels.py`.
        gamma: focusing exponent γ ≥ 0.
        kl_weight: λ ≥ 0; 0 is focal loss alone, the baseline.
        class_weight: [C], finite and ≥ 0; multiplies the focal term of each row of that class.

    Raises:
        ValueError: on a γ, λ or class weight that is negative or not finite; the message names the value.
    """

    neighbour_ids: Tensor
    neighbour_weights: Tensor
    class_weight: Tensor | None

    def __init__(
        self,
        targets: NeighbourTable,
        *,
        gamma: float = 2.0,
        kl_weight: float = 1.0,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_gamma(gamma)
        if not (math.isfinite(kl_weight) and kl_weight >= 0):
            raise ValueError(f"kl_weight (λ) must be finite and ≥ 0; got {kl_weight}")
        if class_weight is not None:
            check_class_weight(class_weight, targets.classes)
            wrong = (~(torch.isfinite(class_weight) & (class_weight >= 0))).nonzero()
            if wrong.numel():
                c = int(wrong[0])
                raise ValueError(f"the weight of class {c} must be finite and ≥ 0; got {float(class_weight[c])}")
            class_weight = class_weight.float()
        self.gamma = gamma
        self.kl_weight = kl_weight
        self.background = targets.background
        # Not persistent: the bundle carries the table, and a checkpoint must not bring back another epoch's targets.
        self.register_buffer("neighbour_ids", targets.ids, persistent=False)
        self.register_buffer("neighbour_weights", targets.weights, persistent=False)
        self.register_buffer("class_weight", class_weight, persistent=False)

    def set_targets(self, targets: NeighbourTable) -> None:
        """Change the target distributions, as the curriculum does between epochs.

        Raises:
            ValueError: when the number of classes differs.
        """
        if targets.classes != self.neighbour_ids.shape[0]:
            raise ValueError(f"the loss has {self.neighbour_ids.shape[0]} classes, the new targets {targets.classes}")
        self.background = targets.background
        self.neighbour_ids = targets.ids.to(self.neighbour_ids.device)
        self.neighbour_weights = targets.weights.to(self.neighbour_weights.device)

    def forward(self, logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """The loss of logits [B, C] and labels [B] int64, of which `IGNORE_INDEX` counts nothing.

        Returns:
            A scalar, or [B] for "none"; "mean" is over the rows that count.

        Raises:
            ValueError: on wrong shapes or a label out of range; the message names the value.
        """
        valid = check_labels(logits, labels, IGNORE_INDEX)
        if self.background == 0 or self.kl_weight == 0:
            return focal_label_kl(
                logits,
                labels,
                self.neighbour_ids,
                self.neighbour_weights,
                gamma=self.gamma,
                kl_weight=self.kl_weight,
                class_weight=self.class_weight,
                ignore_index=IGNORE_INDEX,
                reduction=reduction,
            )
        focal = focal_loss(logits, labels, self.gamma, self.class_weight, reduction="none")
        divergence = self._divergence_with_background(logits, labels.clamp(min=0))
        return reduce_rows(focal + self.kl_weight * divergence, valid, reduction)

    def _divergence_with_background(self, logits: Tensor, labels: Tensor) -> Tensor:
        """KL [B] to a target whose row lists some classes and gives every other one the same probability β.

        Σ_j p_j·log q_j = Σ_listed (p_j − β)·log q_j + β·Σ_all log q_j, so that no [B, C] target is needed.
        """
        log_q = F.log_softmax(at_least_float32(logits), dim=-1)
        listed = self.neighbour_weights[labels].to(log_q)
        beta = torch.tensor(self.background, dtype=log_q.dtype, device=log_q.device)
        unlisted = logits.shape[1] - listed.shape[1]
        negative_entropy = torch.xlogy(listed, listed).sum(dim=1) + unlisted * torch.xlogy(beta, beta)
        gathered = log_q.gather(1, self.neighbour_ids[labels].long())
        return negative_entropy - ((listed - beta) * gathered).sum(dim=1) - beta * log_q.sum(dim=1)


def code_loss(
    logits: Tensor, labels: Tensor, codes: Tensor, reduction: Reduction = "mean", ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Multi-label sigmoid loss of binary feature codes: binary cross-entropy of each feature, averaged over the
    features.

    Args:
        logits: [B, F], one logit a feature.
        labels: [B] int64 class numbers, or `ignore_index`.
        codes: [C, F] of 0 and 1: the feature code of every class (`training/feature_codes.py`).
        reduction: as in `focal_loss`.
        ignore_index: rows with this label contribute nothing.

    Raises:
        ValueError: when the widths differ or a label is out of range; the message names the value.
    """
    if logits.ndim != 2 or codes.ndim != 2 or logits.shape[1] != codes.shape[1]:
        raise ValueError(
            f"logits [B, F] and codes [C, F] must share F; got {tuple(logits.shape)} and {tuple(codes.shape)}"
        )
    valid = check_label_range(labels, logits.shape[0], codes.shape[0], ignore_index)
    logits = at_least_float32(logits)
    wanted = codes.to(logits)[labels.clamp(min=0)]
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
    return reduce_rows(loss, valid, reduction)


def class_weights(counts: Tensor, weighting: ClassWeighting, beta: float = 0.999) -> Tensor:
    """Weights [C] float32 that raise rare classes, scaled so that the mean over the training rows is 1.

    The scale of the loss, and so the right learning rate, stays what it is without weights. A class without rows gets
    the weight of a class with one row.

    Args:
        counts: [C] rows of each class in the training split.
        weighting: "none" gives ones; "inverse_sqrt" 1/√n; "effective_number" (1 − β)/(1 − β^n).
        beta: β of "effective_number", 0 ≤ β < 1.

    Raises:
        ValueError: on a negative count, no rows at all, an unknown weighting or a β outside [0, 1).

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 4.
    """
    rows = counts.to(torch.float64)
    if rows.ndim != 1 or not bool(torch.isfinite(rows).all()) or bool((rows < 0).any()):
        raise ValueError(f"counts must be [C], finite and ≥ 0; got {counts}")
    if not bool(rows.sum() > 0):
        raise ValueError("counts must hold at least one row; every class has 0")
    seen = rows.clamp(min=1)
    if weighting == "none":
        weight = torch.ones_like(seen)
    elif weighting == "inverse_sqrt":
        weight = seen.rsqrt()
    elif weighting == "effective_number":
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1); got {beta}")
        weight = (1 - beta) / (1 - beta**seen)
    else:
        raise ValueError(f"weighting must be none, inverse_sqrt or effective_number; got {weighting!r}")
    return (weight * rows.sum() / (weight * rows).sum()).to(torch.float32)


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 when they come so."""
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point; got {logits.dtype}")
    return logits if logits.dtype == torch.float64 else logits.float()


def reduce_rows(loss: Tensor, valid: Tensor, reduction: Reduction) -> Tensor:
    """Sum, mean over the valid rows, or the rows themselves; rows that are not valid count as 0."""
    loss = torch.where(valid, loss, loss.new_zeros(()))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / valid.sum().clamp(min=1)
    raise ValueError(f"reduction must be mean, sum or none; got {reduction!r}")


def check_gamma(gamma: float) -> None:
    """Raises ValueError unless γ is finite and ≥ 0."""
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and ≥ 0; got {gamma}")


def check_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """[B] bool of the rows that are not ignored; raises ValueError naming what is wrong with logits [B, C] or labels
    [B]."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [B, C] with at least one class; got {tuple(logits.shape)}")
    return check_label_range(labels, logits.shape[0], logits.shape[1], ignore_index)


def check_label_range(labels: Tensor, rows: int, classes: int, ignore_index: int) -> Tensor:
    """[B] bool of the rows that are not ignored; raises ValueError naming the first label outside 0 … C−1."""
    if labels.ndim != 1 or labels.shape[0] != rows:
        raise ValueError(f"labels must be [{rows}]; got {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64; got {labels.dtype}")
    valid = labels != ignore_index
    wrong = valid & ((labels < 0) | (labels >= classes))
    # On an accelerator this check would make every step wait for the device; there the gather itself fails.
    if not labels.is_cuda and bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"label {int(labels[row])} in row {row} is out of range: there are {classes} classes")
    return valid


def check_class_weight(class_weight: Tensor, classes: int) -> None:
    """Raises ValueError unless the weights are [C]."""
    if class_weight.shape != (classes,):
        raise ValueError(f"class_weight must be [{classes}]; got {tuple(class_weight.shape)}")
