"""The front doors on CPU tensors: values, gradients, autograd's rules, torch.compile and every refused argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import label_kl_torch, reference
from kernels.label_kl import focal_label_kl, label_kl, linear_focal_label_kl
from kernels.label_kl_objective import Objective
from tests.kernels.label_kl_problem import Problem, dense_loss, norm_error

F64 = torch.float64


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_reference_gradient_is_that_of_autograd(gamma: float, temperature: float) -> None:
    problem = Problem.random(6, 23, dtype=F64)
    logits = problem.logits.clone().requires_grad_()
    choice = {"gamma": gamma, "temperature": temperature, "kl_weight": 0.7, "class_weight": torch.rand(23)}
    problem.changed(logits=logits).loss(**choice).sum().backward()
    torch.testing.assert_close(problem.gradient(**choice), logits.grad)


def test_kl_is_zero_at_the_target_and_positive_elsewhere() -> None:
    problem = Problem.random(40, 9, 4, dtype=F64)
    at_target = reference.target_distribution(problem.labels, *problem.table, 9).clamp(min=1e-300).log() * 2.0
    # The table's float32 rows sum to one within their rounding.
    assert label_kl(at_target, problem.labels, *problem.table, temperature=2.0).abs().max() < 1e-6
    assert label_kl(problem.logits, problem.labels, *problem.table).min() > 0


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 7),
    classes=st.integers(1, 80),
    entries=st.integers(1, 9),
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0]),
    kl_weight=st.floats(0.0, 3.0),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    reduction=st.sampled_from(["none", "sum", "mean"]),
    weighted=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_loss_and_gradient_are_the_references(
    rows: int,
    classes: int,
    entries: int,
    gamma: float,
    kl_weight: float,
    temperature: float,
    reduction: Any,
    weighted: bool,
    seed: int,
) -> None:
    problem = Problem.random(rows, classes, entries, dtype=F64, seed=seed)
    problem.labels[seed % 3 :: 3] = -100
    choice: dict[str, Any] = {"gamma": gamma, "kl_weight": kl_weight, "temperature": temperature}
    choice["class_weight"] = torch.rand(classes) + 0.5 if weighted else None
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, reduction=reduction, **choice)
    expected, gradient = problem.loss(**choice), problem.gradient(**choice)
    counted = max(1, int((problem.labels != -100).sum()))
    upstream = torch.randn(loss.shape, dtype=F64)
    loss.backward(upstream)
    if reduction == "none":
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits.grad, gradient * upstream[:, None])
    else:
        by = counted if reduction == "mean" else 1
        torch.testing.assert_close(loss, expected.sum() / by)
        torch.testing.assert_close(logits.grad, gradient * upstream / by)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(reduction: Any, inplace: bool) -> None:
    problem = Problem.random(4, 11, dtype=F64)
    logits = problem.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: focal_label_kl(
            x * 1.0, *problem.arguments, temperature=1.5, reduction=reduction, inplace_backward=inplace
        ),
        logits,
    )


@pytest.mark.parametrize("materialise_bytes", [0, 2**29])
def test_gradcheck_of_the_linear_entry(materialise_bytes: int) -> None:
    problem = Problem.random(4, 11, dtype=F64)
    inputs = tuple(torch.randn(shape, dtype=F64, requires_grad=True) for shape in ((4, 3), (11, 3), (11,)))
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: linear_focal_label_kl(
            hidden, weight, bias, *problem.arguments, reduction="none", materialise_bytes=materialise_bytes
        ),
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_no_larger_than_that_of_the_same_dtype_in_plain_torch(dtype: torch.dtype) -> None:
    problem = Problem.random(16, 300, dtype=dtype)
    exact = problem.changed(logits=problem.logits.double())
    plain = problem.logits.clone().requires_grad_()
    plain_loss = dense_loss(plain, problem, 2.0, 1.0, 1.0)
    plain_loss.sum().backward()
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, reduction="none")
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert plain.grad is not None
    assert norm_error(loss, exact.loss()) <= norm_error(plain_loss, exact.loss()) + 1e-6
    assert norm_error(logits.grad, exact.gradient()) <= norm_error(plain.grad, exact.gradient()) + 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_torch_path_passes_over_the_logits_as_often_as_it_must(temperature: float) -> None:
    """Log-softmax, exponential, factor: in place, so that nothing of the logits' size is allocated for the gradient."""
    passes: list[str] = []

    class Passes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes = [each.numel() for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
            sparse = function.overloadpacket.__name__ in ("scatter_add_", "index_fill_")
            if max(sizes, default=0) >= 7 * 500 and not function.is_view and not sparse:
                passes.append(function.overloadpacket.__name__.strip("_"))
            return result

    problem = Problem.random(7, 500)
    objective = Objective(*problem.arguments, temperature=temperature)
    logits = problem.logits.clone()
    with Passes():
        loss = label_kl_torch.focal_label_kl_rows(logits, logits, objective, 1.0, 500)
    once = ["log_softmax", "exp", "mul"]
    # The KL term's own temperature costs a scaled copy with passes of its own, and a sum.
    assert sorted(passes) == sorted(once if temperature == 1.0 else [*once, *once, "div", "add"])
    torch.testing.assert_close(loss.double(), problem.loss(temperature=temperature), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.double(), problem.gradient(temperature=temperature), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.9, 2.0])
@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 200.0])
def test_certain_label(margin: float, gamma: float) -> None:
    problem = Problem.random(3, 50, scale=1.0)
    problem = problem.changed(logits=problem.logits.scatter(1, problem.labels[:, None], margin))
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, gamma=gamma, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), problem.loss(gamma=gamma), atol=1e-5, rtol=1e-5)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), problem.gradient(gamma=gamma), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignored_rows_of_nan_get_zeros_in_place_and_padding_too(dtype: torch.dtype) -> None:
    problem = Problem.random(5, 12, dtype=dtype)
    problem.labels[1::2] = -100
    exact = problem.changed(logits=problem.logits.double())
    padded = torch.nn.functional.pad(problem.logits, (0, 4), value=50.0)
    padded[1::2] = float("nan")
    logits = padded.requires_grad_() * 1
    loss = focal_label_kl(logits, *problem.arguments, reduction="sum", inplace_backward=True, num_classes=12)
    torch.testing.assert_close(loss.double(), exact.loss().sum(), atol=1e-5, rtol=1e-5)
    assert (logits[:, 12:] == 0).all()
    assert (logits[1::2] == 0).all()
    assert norm_error(logits[::2, :12], exact.gradient()[::2]) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_minus_infinity_masks_a_class() -> None:
    problem = Problem.random(5, 12, 3)
    masked = (problem.labels[:, None] + 7) % 12
    ids = problem.neighbour_ids.clone()
    ids[:, 1:] = ids[:, :1]
    problem = problem.changed(
        logits=problem.logits.scatter(1, masked, float("-inf")).requires_grad_(), neighbour_ids=ids
    )
    loss = focal_label_kl(problem.logits, *problem.arguments, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), problem.loss())
    assert problem.logits.grad is not None
    assert (problem.logits.grad.gather(1, masked) == 0).all()
    assert problem.logits.grad.isfinite().all()


def test_second_backward_through_a_kept_graph_is_the_same() -> None:
    problem = Problem.random(5, 12)
    logits = problem.logits.clone().requires_grad_()
    loss = 3 * focal_label_kl(logits, *problem.arguments, reduction="sum")
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_unit_upstream_returns_the_saved_gradient_without_a_copy() -> None:
    problem = Problem.random(5, 12)
    logits = problem.logits.clone().requires_grad_()
    saved: list[int] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = focal_label_kl(logits, *problem.arguments)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.data_ptr() in saved


@pytest.mark.parametrize("linear", [False, True])
def test_double_backward_raises_a_clear_error(linear: bool) -> None:
    problem = Problem.random(5, 12)
    leaf = torch.randn(5, 12, requires_grad=True)
    if linear:
        loss = linear_focal_label_kl(leaf, torch.randn(12, 12), None, *problem.arguments, materialise_bytes=0)
    else:
        loss = focal_label_kl(leaf, *problem.arguments)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        gradient.sum().backward()


def test_inplace_gradient_overwrites_the_logits_and_nothing_else() -> None:
    problem = Problem.random(5, 12)
    leaf = problem.logits.clone().requires_grad_()
    logits = leaf * 1.0
    loss = focal_label_kl(logits, *problem.arguments, reduction="sum", inplace_backward=True)
    expected = problem.changed(logits=problem.logits.double())
    torch.testing.assert_close(loss.double(), expected.loss().sum())
    torch.testing.assert_close(logits.detach().double(), expected.gradient(), atol=1e-6, rtol=1e-5)
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), expected.gradient(), atol=1e-6, rtol=1e-5)


def test_inplace_is_seen_by_whoever_saved_the_logits() -> None:
    problem = Problem.random(5, 12)
    logits = problem.logits.clone().requires_grad_() * 1.0
    saved = logits.square().sum()
    focal_label_kl(logits, *problem.arguments, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_writing_to_the_logits_after_inplace_is_seen_in_backward() -> None:
    problem = Problem.random(5, 12)
    logits = problem.logits.clone().requires_grad_() * 1.0
    loss = focal_label_kl(logits, *problem.arguments, inplace_backward=True)
    logits.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inplace_leaves_logits_alone_when_no_gradient_is_wanted() -> None:
    problem = Problem.random(5, 12)
    before = problem.logits.clone()
    focal_label_kl(problem.logits, *problem.arguments, inplace_backward=True)
    assert torch.equal(problem.logits, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_without_graph_breaks(inplace: bool) -> None:
    problem = Problem.random(5, 12)
    weight = torch.randn(12, 12)

    def step(hidden: torch.Tensor) -> torch.Tensor:
        return focal_label_kl(hidden @ weight, *problem.arguments, inplace_backward=inplace) * 2

    eager, compiled = (torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "12")
    step(eager).backward()
    torch.compile(step, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_linear_entry_compiles_without_graph_breaks() -> None:
    problem = Problem.random(5, 12)

    def step(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_focal_label_kl(hidden, weight, None, *problem.arguments, materialise_bytes=0)

    hidden, weight = torch.randn(5, 3, requires_grad=True), torch.randn(12, 3, requires_grad=True)
    eager = torch.autograd.grad(step(hidden, weight), (hidden, weight))
    compiled = torch.autograd.grad(
        torch.compile(step, fullgraph=True, backend="aot_eager")(hidden, weight), (hidden, weight)
    )
    torch.testing.assert_close(compiled, eager)


def test_operators_keep_the_rules_of_torch_library() -> None:
    problem = Problem.random(4, 10)
    logits = problem.logits.clone().requires_grad_()
    ops = torch.ops.shelfwise
    constants = (None, 2.0, 1.0, 1.0, -100)
    torch.library.opcheck(ops.focal_label_kl, (logits, *problem.arguments, *constants, "mean", 10, True))
    torch.library.opcheck(ops.focal_label_kl_, (problem.logits.clone(), *problem.arguments, *constants, "none", 10))
    torch.library.opcheck(ops.label_kl, (problem.logits, problem.labels[:, None], *problem.table, 1.0))
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(10, 3, requires_grad=True)
    torch.library.opcheck(ops.linear_focal_label_kl, (hidden, weight, None, *problem.arguments, *constants))


def test_linear_entry_follows_autocast() -> None:
    problem = Problem.random(6, 40)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_focal_label_kl(hidden, weight, None, *problem.arguments, materialise_bytes=0)
        logits = torch.nn.functional.linear(hidden, weight)
        expected = focal_label_kl(logits, *problem.arguments)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_recomputed_and_materialised_linear_entries_agree(bias: bool) -> None:
    problem = Problem.random(9, 50)
    results = []
    for limit in (0, 2**29):
        generator = torch.Generator().manual_seed(3)
        parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((9, 6), (50, 6), (50,))]
        loss = linear_focal_label_kl(
            parameters[0], parameters[1], parameters[2] if bias else None, *problem.arguments, materialise_bytes=limit
        )
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in parameters[: 3 if bias else 2]]))
    torch.testing.assert_close(results[0], results[1])


def test_padding_columns_take_no_part() -> None:
    problem = Problem.random(5, 12)
    padded = torch.nn.functional.pad(problem.logits, (0, 4), value=50.0).requires_grad_()
    loss = focal_label_kl(padded, *problem.arguments, reduction="none", num_classes=12)
    loss.sum().backward()
    torch.testing.assert_close(loss, focal_label_kl(problem.logits, *problem.arguments, reduction="none"))
    assert padded.grad is not None
    assert (padded.grad[:, 12:] == 0).all()


def test_all_rows_ignored_gives_zero_and_no_gradient() -> None:
    problem = Problem.random(5, 12)
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, torch.full((5,), -100), *problem.table)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


BAD: list[tuple[str, str]] = [
    ("logits", r"logits: expected rank 2 \[B, C\], got shape \(5,\)"),
    ("logits_dtype", "logits: expected one of float32, bfloat16, float16, float64, got torch.int64"),
    ("labels", r"labels: expected shape \(5,\), got \(4,\)"),
    ("labels_dtype", "labels: expected one of int64, int32, got torch.float32"),
    ("negative", "labels: expected 0 to 11 or ignore_index -100, got -3"),
    ("too_large", "labels: expected 0 to 11 or ignore_index -100, got 12"),
    ("table_rows", r"neighbour_ids: expected \[12, K\+1\] .* got \(11, 5\)"),
    ("table_width", r"neighbour_weights: expected neighbour_ids' shape \(12, 5\), got \(12, 4\)"),
    ("ids_dtype", "neighbour_ids: expected one of int64, int32, got torch.float32"),
    ("weights_dtype", "neighbour_weights: expected float32, got torch.float64"),
    ("ids_outside", "neighbour_ids: expected 0 to 11, got 12"),
    ("device", "labels: expected device cpu, got meta"),
    ("class_weight", r"class_weight: expected shape \(12,\), got \(3,\)"),
    ("gamma", "gamma: expected a number >= 0, got -1"),
    ("temperature", "temperature: expected a number > 0, got 0"),
    ("reduction", "reduction: expected 'mean', 'sum' or 'none', got 'max'"),
    ("num_classes", r"num_classes: expected 1 to 12 \(columns of logits\), got 13"),
    ("leaf", "inplace_backward: expected logits computed by another operation"),
]


@pytest.mark.parametrize(("case", "message"), BAD, ids=[case for case, _ in BAD])
def test_bad_input_is_refused_by_name(case: str, message: str) -> None:
    problem = Problem.random(5, 12)
    values: dict[str, Any] = {
        "logits": problem.logits,
        "labels": problem.labels,
        "neighbour_ids": problem.neighbour_ids,
        "neighbour_weights": problem.neighbour_weights,
    }
    replaced: dict[str, dict[str, Any]] = {
        "logits": {"logits": problem.logits[:, 0]},
        "logits_dtype": {"logits": problem.logits.long()},
        "labels": {"labels": problem.labels[:4]},
        "labels_dtype": {"labels": problem.labels.float()},
        "negative": {"labels": torch.tensor([0, 1, -3, -100, 2])},
        "too_large": {"labels": torch.tensor([0, 1, 12, -100, 2])},
        "table_rows": {"neighbour_ids": problem.neighbour_ids[1:]},
        "table_width": {"neighbour_weights": problem.neighbour_weights[:, 1:]},
        "ids_dtype": {"neighbour_ids": problem.neighbour_ids.float()},
        "weights_dtype": {"neighbour_weights": problem.neighbour_weights.double()},
        "ids_outside": {"neighbour_ids": problem.neighbour_ids + 1},
        "device": {"labels": problem.labels.to("meta")},
        "class_weight": {"class_weight": torch.ones(3)},
        "gamma": {"gamma": -1},
        "temperature": {"temperature": 0},
        "reduction": {"reduction": "max"},
        "num_classes": {"num_classes": 13},
        "leaf": {"logits": problem.logits.clone().requires_grad_(), "inplace_backward": True},
    }
    with pytest.raises(ValueError, match=message):
        focal_label_kl(**(values | replaced[case]))


def test_linear_entry_refuses_parts_that_do_not_fit() -> None:
    problem = Problem.random(5, 12)
    hidden, weight = torch.randn(5, 8), torch.randn(12, 8)
    with pytest.raises(ValueError, match=r"weight: expected \[C, 8\] to fit hidden, got \(12, 7\)"):
        linear_focal_label_kl(hidden, weight[:, 1:], None, *problem.arguments)
    with pytest.raises(ValueError, match=r"bias: expected shape \(12,\), got \(11,\)"):
        linear_focal_label_kl(hidden, weight, torch.zeros(11), *problem.arguments)
    with pytest.raises(ValueError, match=r"weight: expected hidden's dtype torch\.float32, got torch\.bfloat16"):
        linear_focal_label_kl(hidden, weight.bfloat16(), None, *problem.arguments)


def test_label_kl_scores_every_candidate_as_if_alone() -> None:
    problem = Problem.random(5, 12, dtype=torch.bfloat16)
    candidates = torch.randint(0, 12, (5, 3))
    together = label_kl(problem.logits, candidates, *problem.table, temperature=1.5)
    expected = reference.label_kl(problem.logits, candidates, *problem.table, temperature=1.5)
    torch.testing.assert_close(together.double(), expected, atol=1e-5, rtol=1e-5)
    for column in range(3):
        alone = label_kl(problem.logits, candidates[:, column], *problem.table, temperature=1.5)
        torch.testing.assert_close(alone, together[:, column])
    with pytest.raises(ValueError, match="candidates: expected 0 to 11, got -100"):
        label_kl(problem.logits, torch.full((5,), -100), *problem.table)
