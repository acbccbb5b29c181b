"""Focal loss + KL to the label's neighbourhood, without a dense target: the front doors of kernel 1.

    loss = class_weight[y] * (1 - p_y)^gamma * -log p_y  +  kl_weight * KL(target_y || softmax(logits / temperature))

with p = softmax(logits) and target_y a row of a sparse table (K+1 ids and weights a class). Loss and gradient come out
of one pass over the logits: the gradient is computed in the forward call and only scaled, in place, in the backward
call, where a factor of one costs no traffic. CUDA tensors go to label_kl_triton.py, all others to label_kl_torch.py;
both take what is to be computed as one value (label_kl_objective.py).
Focal loss: Lin et al., ICCV 2017; gradient in forward: Liger-Kernel (arXiv 2410.10989); recomputed classifier:
Cut Your Losses (arXiv 2411.09009).
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor

from kernels import label_kl_torch
from kernels.label_kl_objective import (
    LOGITS_DTYPES,
    SCHEMA,
    Objective,
    check_labels,
    check_table,
    check_temperature,
    check_values,
    names,
)

Reduction = Literal["mean", "sum", "none"]


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
    reduction: Reduction = "mean",
    inplace_backward: bool = False,
    num_classes: int | None = None,
) -> Tensor:
    """Focal loss on the logits plus `kl_weight` times the KL divergence to the label's neighbourhood.

    KL(t || q) = sum_j t_j (log t_j - log q_j) includes the entropy of t, so it is never negative and is 0 at q = t.
    q = softmax(logits / temperature); no factor temperature^2 is applied (pass kl_weight * temperature**2 for
    Hinton's convention). The focal term always uses softmax(logits).

    Args:
        logits: [B, C] float32, bfloat16 or float16 (computed in float32), or float64 (torch path). Rows that begin
            at multiples of 16 bytes are fastest: let the head write a multiple of 128 columns and give `num_classes`.
        labels: [B] int64 or int32, each in [0, C) or `ignore_index`.
        neighbour_ids: [C, K+1] int32 or int64, row c the entries of class c's target, c itself in slot 0 by custom.
            An id may appear twice: its weights add up.
        neighbour_weights: [C, K+1] float32, not negative, rows summing to 1. A constant: gets no gradient.
        gamma: focusing exponent >= 0; 0 gives cross-entropy.
        kl_weight: factor of the KL term.
        temperature: divides the logits in the KL term, > 0.
        class_weight: [C] float32 factor of the focal term (alpha of the focal loss); the KL term is not weighted.
        ignore_index: rows with this label count nothing and get gradient 0.
        reduction: "mean" over the rows that count (0 when none does), "sum", or "none" for [B].
        inplace_backward: the gradient overwrites `logits`, in the forward call, which saves a buffer of their size.
            Whoever needs the logits afterwards, or has saved them for backward, gets autograd's in-place error.
            Ignored when no gradient is wanted, and under torch.compile.
        num_classes: C when `logits` has more columns than the table has rows; the columns behind it are padding,
            take no part and get gradient 0. Default: all columns.

    Returns:
        float32 (float64 for float64 logits): scalar, or [B] with reduction "none".

    Raises:
        ValueError: an argument has the wrong dtype, rank, shape, device or value; labels and ids are looked at on the
            CPU always, on CUDA with SHELFWISE_CHECK_IDS=1 (it waits for the device). Unchecked, a bad label or id
            makes its row's loss and gradient NaN; memory outside the tensors is never touched.
        RuntimeError: on a second differentiation of the result.
    """
    classes = _checked_classes(logits, num_classes)
    objective = Objective(
        labels,
        neighbour_ids,
        neighbour_weights,
        class_weight,
        float(gamma),
        float(kl_weight),
        float(temperature),
        ignore_index,
    )
    objective.check(logits, classes)
    _check_reduction(reduction)
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    if wants_gradient and inplace_backward and not torch.compiler.is_compiling():
        _check_overwritable(logits)
        gradient = logits.detach()  # shares memory and version counter with the logits
        loss, remaining = torch.ops.shelfwise.focal_label_kl_(gradient, *objective, reduction, classes)
        return torch.ops.shelfwise.attach_gradient(logits, loss, gradient, remaining)
    loss, _, _ = torch.ops.shelfwise.focal_label_kl(logits, *objective, reduction, classes, wants_gradient)
    return loss


def linear_focal_label_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    *,
    gamma: float = 2.0,
    kl_weight: float = 1.0,
    temperature: float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    materialise_bytes: int = 2**29,
) -> Tensor:
    """`focal_label_kl` of the classifier's logits hidden @ weight.T + bias, which need not exist as a whole.

    Up to `materialise_bytes` the logits are written once and overwritten with their gradient (three matrix products).
    Beyond it they are computed a column block at a time, twice (four products): the forward call keeps a few numbers
    a row, the backward call knows each row's upstream gradient, writes every block of the weight gradient once and
    sums hidden's in float32. Extra memory is one block, at most 64 MiB, and float32 [B, d].

    Args:
        hidden: [B, d] float32, bfloat16 or float16 (float64: torch path).
        weight: [C, d] in hidden's dtype; under autocast all three are cast to the autocast dtype.
        bias: [C] in hidden's dtype, or None.
        materialise_bytes: largest size of the logits that is written as a whole.

    The other arguments, the result and the errors are those of `focal_label_kl`.
    """
    for name, value in (("hidden", hidden), ("weight", weight)):
        if value.dim() != 2:
            raise ValueError(f"{name}: expected rank 2, got shape {tuple(value.shape)}")
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight: expected [C, {hidden.shape[1]}] to fit hidden, got {tuple(weight.shape)}")
    classes = weight.shape[0]
    if bias is not None and tuple(bias.shape) != (classes,):
        raise ValueError(f"bias: expected shape ({classes},), got {tuple(bias.shape)}")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if hidden.dtype not in LOGITS_DTYPES:
        raise ValueError(f"hidden: expected one of {names(LOGITS_DTYPES)}, got {hidden.dtype}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.dtype != hidden.dtype:
            raise ValueError(f"{name}: expected hidden's dtype {hidden.dtype}, got {parameter.dtype}")
        if parameter is not None and parameter.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device}, got {parameter.device}")
    if hidden.shape[0] * classes * hidden.element_size() <= materialise_bytes:
        return focal_label_kl(
            torch.nn.functional.linear(hidden, weight, bias),
            labels,
            neighbour_ids,
            neighbour_weights,
            gamma=gamma,
            kl_weight=kl_weight,
            temperature=temperature,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            inplace_backward=True,
        )
    objective = Objective(
        labels,
        neighbour_ids,
        neighbour_weights,
        class_weight,
        float(gamma),
        float(kl_weight),
        float(temperature),
        ignore_index,
    )
    objective.check(hidden, classes)
    _check_reduction(reduction)
    loss, _ = torch.ops.shelfwise.linear_focal_label_kl(hidden, weight, bias, *objective)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (labels != ignore_index).sum().clamp(min=1)


def label_kl(
    logits: Tensor,
    candidates: Tensor,
    neighbour_ids: Tensor,
    neighbour_weights: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """KL(target of a candidate label || softmax(logits / temperature)), the `neighbour_kl` of a served prediction.

    Small where the predicted doubt lies among the candidate's near labels, large where an item needs a second look.
    For inference: the result has no gradient formula.

    Args:
        logits: [B, C] float32, bfloat16, float16 or float64.
        candidates: [B] or [B, M] int64 or int32, labels to score, each in [0, C).
        neighbour_ids, neighbour_weights, temperature: as in `focal_label_kl`.

    Returns:
        float32 (float64 for float64 logits) of the shape of `candidates`.

    Raises:
        ValueError: as in `focal_label_kl`.
    """
    classes = _checked_classes(logits, None)
    check_table(classes, neighbour_ids, neighbour_weights, logits)
    shape = (logits.shape[0],) if candidates.dim() == 1 else (logits.shape[0], candidates.shape[-1])
    check_labels("candidates", candidates, shape, logits)
    check_temperature(temperature)
    result = torch.ops.shelfwise.label_kl(
        logits, candidates.reshape(len(logits), -1), neighbour_ids, neighbour_weights, float(temperature)
    )
    return result.reshape(candidates.shape)


def _checked_classes(logits: Tensor, num_classes: int | None) -> int:
    if logits.dim() != 2:
        raise ValueError(f"logits: expected rank 2 [B, C], got shape {tuple(logits.shape)}")
    if logits.dtype not in LOGITS_DTYPES:
        raise ValueError(f"logits: expected one of {names(LOGITS_DTYPES)}, got {logits.dtype}")
    if logits.shape[1] < 1:
        raise ValueError(f"logits: expected at least one class, got shape {tuple(logits.shape)}")
    if num_classes is None:
        return logits.shape[1]
    if not 1 <= num_classes <= logits.shape[1]:
        raise ValueError(f"num_classes: expected 1 to {logits.shape[1]} (columns of logits), got {num_classes}")
    return num_classes


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def _check_overwritable(logits: Tensor) -> None:
    if logits.is_leaf:
        raise ValueError("inplace_backward: expected logits computed by another operation, got a leaf of the graph")
    if (logits.stride(1) != 1 and logits.shape[1] > 1) or (logits.stride(0) < logits.shape[1] and logits.shape[0] > 1):
        raise ValueError(
            f"inplace_backward: expected rows of unit column stride that do not overlap, got strides {logits.stride()}"
        )


def _takes_triton(tensor: Tensor) -> bool:
    """CUDA tensors do; CPU tensors as well when the process runs Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")
    return tensor.dtype != torch.float64 and (tensor.is_cuda or interpreted)


# Operators: a tensor or three, an objective's fields, and what else there is.


@torch.library.custom_op(
    "shelfwise::focal_label_kl",
    mutates_args=(),
    schema=f"(Tensor logits, {SCHEMA}, str reduction, SymInt num_classes, bool with_gradient) "
    "-> (Tensor, Tensor, Tensor)",
)
def _focal_label_kl(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the loss times a constant known on the host, and what is left to multiply in backward."""
    *fields, reduction, num_classes, with_gradient = arguments
    gradient = _gradient_like(logits) if with_gradient else None
    loss, remaining = _loss_and_gradient(logits, gradient, Objective(*fields), reduction, num_classes)
    return loss, logits.new_empty(0) if gradient is None else gradient, remaining


@torch.library.custom_op(
    "shelfwise::focal_label_kl_",
    mutates_args=("logits",),
    schema=f"(Tensor(a!) logits, {SCHEMA}, str reduction, SymInt num_classes) -> (Tensor, Tensor)",
)
def _focal_label_kl_inplace(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The same, the gradient written over the logits."""
    *fields, reduction, num_classes = arguments
    return _loss_and_gradient(logits, logits, Objective(*fields), reduction, num_classes)


def _gradient_like(logits: Tensor) -> Tensor:
    """An uninitialised gradient whose rows lie in memory as the logits' do, so that both take the same wide accesses.

    A row stride that is a multiple of 16 bytes is kept as such; gaps between rows are closed to the next one.
    """
    rows, columns = logits.shape
    vector = 16 // logits.element_size()
    if logits.stride(1) == 1 and logits.stride(0) > columns and logits.stride(0) % vector == 0:
        padded = (columns + vector - 1) // vector * vector
        return logits.new_empty(rows, padded)[:, :columns]
    return logits.new_empty(rows, columns)


def _loss_and_gradient(
    logits: Tensor, gradient: Tensor | None, objective: Objective, reduction: str, classes: int
) -> tuple[Tensor, Tensor]:
    """Write gradient_scale * d(row loss)/d(logits) into `gradient`; return the loss and the factor still missing.

    With reduction "mean" 1 / B is multiplied in at once, and the factor left is B / (rows that count): one, and free,
    unless rows are ignored. float16 would lose small gradients that a loss scale is about to lift: it waits.
    """
    objective.check_values(classes)
    rows = logits.shape[0]
    scale = 1.0 / rows if reduction == "mean" and rows and logits.dtype != torch.float16 else 1.0
    if _takes_triton(logits):
        from kernels import label_kl_triton

        loss = label_kl_triton.focal_label_kl_rows(logits, gradient, objective, scale, classes)
        return label_kl_triton.reduced(loss, objective, reduction, scale)
    loss = label_kl_torch.focal_label_kl_rows(logits, gradient, objective, scale, classes)
    if reduction == "none":
        return loss, loss.new_ones(())
    if reduction == "sum":
        return loss.sum(), loss.new_ones(())
    counted = (objective.labels != objective.ignore_index).sum().clamp(min=1)
    return loss.sum() / counted, ((1 / scale) / counted).to(loss.dtype)


def _fake_loss(like: Tensor, reduction: str) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty((like.shape[0],) if reduction == "none" else (), dtype=dtype)


@_focal_label_kl.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduction, _num_classes, with_gradient = arguments
    gradient = _gradient_like(logits) if with_gradient else logits.new_empty(0)
    return _fake_loss(logits, reduction), gradient, _fake_loss(logits, "sum")


@_focal_label_kl_inplace.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, reduction, _num_classes = arguments
    return _fake_loss(logits, reduction), _fake_loss(logits, "sum")


@torch.library.custom_op("shelfwise::attach_gradient", mutates_args=())
def _attach_gradient(logits: Tensor, loss: Tensor, gradient: Tensor, remaining: Tensor) -> Tensor:
    """Hand on the loss with a gradient for the logits that an in-place operator has already computed."""
    return loss.clone()


@_attach_gradient.register_fake
def _(logits: Tensor, loss: Tensor, gradient: Tensor, remaining: Tensor) -> Tensor:
    return torch.empty_like(loss)


@torch.library.custom_op("shelfwise::scale_gradient_", mutates_args=("gradient",))
def _scale_gradient_inplace(gradient: Tensor, factor: Tensor) -> None:
    """Multiply by a factor, a scalar or one a row; where it is one nothing is read or written."""
    if _takes_triton(gradient):
        from kernels import label_kl_triton

        label_kl_triton.scale_rows(gradient, factor)
    elif not bool((factor == 1).all()):
        gradient.mul_(factor if factor.dim() == 0 else factor[:, None])


@_scale_gradient_inplace.register_fake
def _(gradient: Tensor, factor: Tensor) -> None:
    return None


@torch.library.custom_op("shelfwise::scaled_gradient", mutates_args=())
def _scaled_gradient(gradient: Tensor, factor: Tensor) -> Tensor:
    """The same product in a new tensor, for a graph that is kept and for graphs that a compiler captures."""
    return (gradient * (factor if factor.dim() == 0 else factor[:, None])).to(gradient.dtype)


@_scaled_gradient.register_fake
def _(gradient: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _raise_on_double_backward(ctx: Any, *upstream: Tensor) -> None:
    raise RuntimeError(
        "focal_label_kl: the gradient is computed in the forward call and cannot be differentiated a second time; "
        "use kernels.reference.focal_label_kl for higher derivatives"
    )


def _final_gradient(gradient: Tensor, remaining: Tensor, upstream: Tensor) -> Tensor:
    factor = upstream * remaining
    kept = torch.is_grad_enabled() or torch._C._autograd._get_current_graph_task_keep_graph()
    traced = type(gradient) is not Tensor  # a tensor that stands for one while a compiler captures the graph
    if kept or traced:
        return torch.ops.shelfwise.scaled_gradient(gradient, factor)
    gradient = gradient.detach()
    torch.ops.shelfwise.scale_gradient_(gradient, factor)
    return gradient


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, remaining = output
    ctx.save_for_backward(gradient, remaining)
    ctx.set_materialize_grads(False)


def _focal_label_kl_backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 12
    gradient, remaining = ctx.saved_tensors
    return _final_gradient(gradient, remaining, upstream), *[None] * 11


def _save_attached_gradient(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, _, gradient, remaining = inputs
    ctx.save_for_backward(gradient, remaining)


def _attach_gradient_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient, remaining = ctx.saved_tensors
    return _final_gradient(gradient, remaining, upstream), None, None, None


_focal_label_kl.register_autograd(_focal_label_kl_backward, setup_context=_save_gradient)
_attach_gradient.register_autograd(_attach_gradient_backward, setup_context=_save_attached_gradient)
_scaled_gradient.register_autograd(_raise_on_double_backward)


@torch.library.custom_op(
    "shelfwise::linear_focal_label_kl",
    mutates_args=(),
    schema=f"(Tensor hidden, Tensor weight, Tensor? bias, {SCHEMA}) -> (Tensor, Tensor)",
)
def _linear_focal_label_kl(hidden: Tensor, weight: Tensor, bias: Tensor | None, *fields: Any) -> tuple[Tensor, Tensor]:
    """Loss of each row and what the backward call needs to know of its softmax ([B, n], empty on the torch path)."""
    objective = Objective(*fields)
    objective.check_values(len(weight))
    if _takes_triton(hidden):
        from kernels import label_kl_triton

        return label_kl_triton.linear_focal_label_kl_rows(hidden, weight, bias, objective)
    loss = label_kl_torch.linear_focal_label_kl_rows(hidden, weight, bias, objective)
    return loss, loss.new_empty(len(loss), 0)


@_linear_focal_label_kl.register_fake
def _(hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    loss, statistics = _fake_loss(hidden, "none"), 0
    if _takes_triton(hidden):
        from kernels.label_kl_triton import STATISTICS as statistics
    return loss, loss.new_empty(hidden.shape[0], statistics)


@torch.library.custom_op(
    "shelfwise::linear_focal_label_kl_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor statistics, Tensor hidden, Tensor weight, Tensor? bias, "
    f"{SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def _linear_focal_label_kl_gradients(
    upstream: Tensor, statistics: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *fields: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for hidden, weight and bias."""
    objective = Objective(*fields)
    if _takes_triton(hidden):
        from kernels import label_kl_triton

        return label_kl_triton.linear_focal_label_kl_gradients(upstream, statistics, hidden, weight, bias, objective)
    return label_kl_torch.linear_focal_label_kl_gradients(upstream, hidden, weight, bias, objective)


@_linear_focal_label_kl_gradients.register_fake
def _(upstream: Tensor, statistics: Tensor, hidden: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(weight.shape[0])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.gamma, ctx.kl_weight, ctx.temperature, ctx.ignore_index = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _linear_focal_label_kl_backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 11
    settings = (ctx.gamma, ctx.kl_weight, ctx.temperature, ctx.ignore_index)
    of_hidden, of_weight, of_bias = torch.ops.shelfwise.linear_focal_label_kl_backward(
        upstream.contiguous(), *ctx.saved_tensors, *settings
    )
    has_bias = ctx.saved_tensors[3] is not None
    return of_hidden, of_weight, of_bias if has_bias else None, *[None] * 8


_linear_focal_label_kl.register_autograd(_linear_focal_label_kl_backward, setup_context=_save_linear)
_linear_focal_label_kl_gradients.register_autograd(_raise_on_double_backward)


@torch.library.custom_op("shelfwise::label_kl", mutates_args=())
def _label_kl(
    logits: Tensor, candidates: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, temperature: float
) -> Tensor:
    """KL of each candidate [B, M]."""
    check_values("candidates", candidates, logits.shape[1])
    check_values("neighbour_ids", neighbour_ids, logits.shape[1])
    if _takes_triton(logits):
        from kernels import label_kl_triton

        return label_kl_triton.label_kl_rows(logits, candidates, neighbour_ids, neighbour_weights, temperature)
    return label_kl_torch.label_kl_rows(logits, candidates, neighbour_ids, neighbour_weights, temperature)


@_label_kl.register_fake
def _(logits: Tensor, candidates: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(candidates, dtype=_fake_loss(logits, "sum").dtype)
