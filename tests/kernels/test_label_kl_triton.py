"""The Triton kernels through the front doors, against float64: on the GPU, or in Triton's interpreter without one.

The interpreter must be chosen before Triton is imported, so test_interpreter.py runs this file in a process of its own.
It rounds bfloat16 towards zero, the hardware to nearest: twice the rounding error is allowed there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.label_kl import focal_label_kl, label_kl, linear_focal_label_kl
from kernels.label_kl_objective import Objective
from tests.kernels.label_kl_problem import Problem, dense_loss, norm_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip(
        "needs a GPU; without one test_interpreter.py runs this file under TRITON_INTERPRET=1", allow_module_level=True
    )
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: sizes or streams of a real one")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(problem: Problem, logits: torch.Tensor | None = None, *, upstream: bool = False, **choice: Any) -> None:
    """Loss and gradient within the error of the same computation in plain torch of the same dtype, plus a little."""
    inplace = choice.pop("inplace_backward", False)
    classes = len(problem.neighbour_ids)
    leaf = (problem.logits if logits is None else logits).detach().requires_grad_()
    loss = focal_label_kl(
        leaf.view_as(leaf).mul(1) if inplace else leaf,
        *problem.arguments,
        reduction="none",
        inplace_backward=inplace,
        num_classes=classes,
        **choice,
    )
    by = torch.randn(loss.shape, device=DEVICE) if upstream else torch.ones_like(loss)
    loss.backward(by)
    exact = problem.changed(logits=leaf.detach()[:, :classes].double())
    expected, gradient = exact.loss(**choice), exact.gradient(**choice) * by[:, None]
    torch.testing.assert_close(loss.double(), expected, atol=3e-5, rtol=1e-5)
    assert leaf.grad is not None
    assert (leaf.grad[:, classes:] == 0).all()
    # One rounding to the logits' dtype, a second one where the upstream gradient is multiplied in.
    roundings = {torch.float32: 8.0, torch.float16: 1.0, torch.bfloat16: 2.0 if INTERPRETED else 1.0}[leaf.dtype]
    step = torch.finfo(leaf.dtype).eps / 2 * roundings * (2 if upstream else 1)
    largest = by.abs()[:, None] * (1.0 + gradient.abs() / by.abs()[:, None].clamp(min=1e-30))
    floor = 1e-6 + (2.0**-24 if leaf.dtype == torch.float16 else 0.0)
    assert ((leaf.grad[:, :classes].double() - gradient).abs() <= step * gradient.abs() + floor * largest).all()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    rows=st.integers(0, 4),
    classes=st.one_of(st.integers(1, 40), st.integers(200, 3000)),
    entries=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    gamma=st.sampled_from([0.0, 0.4, 1.0, 2.0, 3.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    inplace=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    rows: int,
    classes: int,
    entries: int,
    dtype: torch.dtype,
    gamma: float,
    temperature: float,
    inplace: bool,
    seed: int,
) -> None:
    problem = Problem.random(rows, classes, entries, dtype=dtype, device=DEVICE, seed=seed)
    check(problem, gamma=gamma, temperature=temperature, kl_weight=0.6, inplace_backward=inplace)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_no_larger_than_that_of_the_same_dtype_in_plain_torch(dtype: torch.dtype) -> None:
    problem = Problem.random(8, 1000, 21, dtype=dtype, device=DEVICE)
    exact = problem.changed(logits=problem.logits.double())
    plain = problem.logits.clone().requires_grad_()
    plain_loss = dense_loss(plain, problem, 2.0, 1.0, 1.0)
    plain_loss.sum().backward()
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, reduction="none")
    loss.sum().backward()
    assert logits.grad is not None
    assert plain.grad is not None
    assert norm_error(loss, exact.loss()) <= norm_error(plain_loss, exact.loss()) + 1e-6
    allowed = 2 if INTERPRETED and dtype == torch.bfloat16 else 1
    assert norm_error(logits.grad, exact.gradient()) <= allowed * norm_error(plain.grad, exact.gradient()) + 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "padding"), [(4350, 0), (4350, 2), (4350, 130)])
def test_width_of_the_product_taxonomy(classes: int, padding: int, dtype: torch.dtype, temperature: float) -> None:
    problem = Problem.random(2, classes, 21, dtype=dtype, device=DEVICE)
    padded = torch.nn.functional.pad(problem.logits, (0, padding), value=9.0)
    check(problem, padded, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (21841, torch.bfloat16),
        (21888, torch.bfloat16),
        (21841, torch.float32),
        (32769, torch.bfloat16),
        (65544, torch.float32),
        (65537, torch.float16),
        (100000, torch.bfloat16),
    ],
)
def test_rows_longer_than_registers(classes: int, dtype: torch.dtype, temperature: float) -> None:
    problem = Problem.random(2, classes, 21, dtype=dtype, device=DEVICE)
    problem.labels[1] = classes - 1
    check(problem, temperature=temperature)


@pytest.mark.parametrize("width", [3000, 40000, 40001])
def test_more_padding_than_classes(width: int) -> None:
    problem = Problem.random(2, 1000, dtype=torch.bfloat16, device=DEVICE)
    check(problem, torch.nn.functional.pad(problem.logits, (0, width - 1000), value=9.0))


def test_ignored_long_row_gets_zeros_everywhere() -> None:
    problem = Problem.random(2, 40001, dtype=torch.bfloat16, device=DEVICE)
    problem.labels[0] = -100
    check(problem, inplace_backward=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class(dtype: torch.dtype) -> None:
    check(Problem.random(3, 1, 1, dtype=dtype, device=DEVICE))


def test_empty_batch() -> None:
    problem = Problem.random(0, 30, device=DEVICE)
    logits = problem.logits.requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.shape == (0, 30)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["columns", "row gap", "odd row gap", "off by one", "transposed", "every other row"])
def test_layout_of_the_logits_changes_nothing(layout: str, inplace: bool) -> None:
    problem = Problem.random(4, 70, dtype=torch.float16, device=DEVICE)
    wide = torch.randn(8, 256, device=DEVICE).half()
    views: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "columns": lambda x: x[:4, :140:2],
        "row gap": lambda x: x[:4, :70],
        "odd row gap": lambda x: x.view(-1)[: 4 * 131].view(4, 131)[:, :70],
        "off by one": lambda x: x[:4, 1:71],
        "transposed": lambda x: x.view(-1)[:280].view(70, 4).T,
        "every other row": lambda x: x[::2, :70],
    }
    view = views[layout](wide)
    view.copy_(problem.logits)
    exact = problem.changed(logits=problem.logits.double())
    if inplace and view.stride(1) != 1:
        computed = views[layout](wide.clone().requires_grad_() * 1)
        with pytest.raises(ValueError, match="rows of unit column stride"):
            focal_label_kl(computed, *problem.arguments, inplace_backward=True)
        return
    before = wide.clone()
    if inplace:
        from kernels import label_kl_triton

        # What the front door calls with the logits as their own gradient.
        loss = label_kl_triton.focal_label_kl_rows(view, view, problem.objective, 1.0, 70)
        gradient = view
        outside = torch.ones_like(wide, dtype=torch.bool)
        outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
        assert torch.equal(wide[outside], before[outside])
    else:
        leaf = view.requires_grad_()
        loss = focal_label_kl(leaf, *problem.arguments, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert torch.equal(wide, before)
    torch.testing.assert_close(loss.double(), exact.loss(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), exact.gradient(), atol=1e-3, rtol=1e-3)


def test_minus_infinity_masks_a_class() -> None:
    problem = Problem.random(4, 90, 1, device=DEVICE)
    masked = (problem.labels[:, None] + 7) % 90
    check(problem.changed(logits=problem.logits.scatter(1, masked, float("-inf"))))


def test_label_without_probability_gives_infinite_loss_and_a_finite_gradient() -> None:
    problem = Problem.random(2, 90, device=DEVICE)
    logits = problem.logits.scatter(1, problem.labels[:, None], float("-inf")).requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, reduction="none")
    loss.sum().backward()
    assert loss.isposinf().all()
    assert logits.grad is not None
    exact = problem.changed(logits=logits.detach().double())
    torch.testing.assert_close(logits.grad.double(), exact.gradient(), atol=1e-6, rtol=1e-5)


def test_row_without_any_probability_is_nan_and_leaves_the_others_alone() -> None:
    problem = Problem.random(3, 90, device=DEVICE)
    problem.logits[1] = float("-inf")
    loss = focal_label_kl(problem.logits, *problem.arguments, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]


def test_repeated_ids_add_their_weights() -> None:
    problem = Problem.random(3, 60, 8, device=DEVICE)
    ids = problem.neighbour_ids.clone()
    ids[:, 3:6] = ids[:, 2:3]
    ids[:, 6] = ids[:, 0]
    check(problem.changed(neighbour_ids=ids))


def test_label_that_is_not_among_its_neighbours() -> None:
    problem = Problem.random(3, 60, 8, device=DEVICE)
    check(problem.changed(neighbour_ids=(problem.neighbour_ids[:, :1] + torch.arange(1, 9, device=DEVICE)).int() % 60))


def test_more_neighbours_than_one_chunk_holds() -> None:
    check(Problem.random(2, 300, 100, device=DEVICE))


def test_weights_of_zero_leave_their_ids_out() -> None:
    problem = Problem.random(3, 60, 4, device=DEVICE)
    weights = problem.neighbour_weights.clone()
    weights[:, 2:] = 0
    weights /= weights.sum(1, keepdim=True)
    unlikely = problem.neighbour_ids[problem.labels][:, 2:].long()
    keep = (unlikely != problem.labels[:, None]) & (unlikely != problem.neighbour_ids[problem.labels][:, 1:2])
    logits = problem.logits.clone()
    for row in range(3):
        logits[row, unlikely[row][keep[row]]] = float("-inf")
    check(problem.changed(neighbour_weights=weights, logits=logits))


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.9, 2.0])
@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 200.0])
def test_certain_label(margin: float, gamma: float) -> None:
    problem = Problem.random(2, 50, device=DEVICE, scale=1.0)
    logits = problem.logits.scatter(1, problem.labels[:, None], margin)
    check(problem.changed(logits=logits), gamma=gamma)


def test_large_logits_do_not_lose_the_loss() -> None:
    problem = Problem.random(3, 400, device=DEVICE)
    check(problem.changed(logits=problem.logits + 1000.0))


def test_upstream_gradient_of_each_row_scales_its_row() -> None:
    check(Problem.random(5, 77, dtype=torch.bfloat16, device=DEVICE), upstream=True)


@pytest.mark.parametrize("a_row", [False, True])
def test_scaling_more_rows_than_programs_leaves_rows_of_factor_one_alone(a_row: bool) -> None:
    from kernels import label_kl_triton

    gradient = torch.randn(1030, 9, device=DEVICE)
    factor = torch.randn(1030, device=DEVICE) if a_row else torch.tensor(-0.5, device=DEVICE)
    if a_row:
        factor[::2] = 1.0
    expected = gradient * (factor[:, None] if a_row else factor)
    label_kl_triton.scale_rows(gradient, factor)
    assert torch.equal(gradient, expected)


def test_class_weight_scales_the_focal_term() -> None:
    problem = Problem.random(5, 77, device=DEVICE)
    check(problem, class_weight=torch.rand(77, device=DEVICE) + 0.5)


def test_int32_labels_and_int64_ids() -> None:
    problem = Problem.random(5, 77, device=DEVICE)
    check(problem.changed(labels=problem.labels.int(), neighbour_ids=problem.neighbour_ids.long()))


@pytest.mark.parametrize("ignored", [0, 2, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reductions(reduction: Any, ignored: int, dtype: torch.dtype) -> None:
    problem = Problem.random(6, 33, dtype=dtype, device=DEVICE)
    problem.labels[:ignored] = -100
    logits = problem.logits.clone().requires_grad_()
    loss = focal_label_kl(logits, *problem.arguments, reduction=reduction)
    (loss * 3).backward()
    by = max(1, 6 - ignored) if reduction == "mean" else 1
    exact = problem.changed(logits=problem.logits.double())
    torch.testing.assert_close(loss.double(), exact.loss().sum() / by, atol=1e-5, rtol=1e-5)
    assert logits.grad is not None
    rtol = 3e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(logits.grad.double(), exact.gradient() * 3 / by, atol=1e-6, rtol=rtol)


def test_reduction_over_more_rows_than_one_block() -> None:
    from kernels import label_kl_triton

    loss = torch.rand(20000, device=DEVICE)
    labels = torch.randint(0, 5, (20000,), device=DEVICE)
    labels[::3] = -100
    loss[::3] = 0
    table = Problem.random(1, 5, device=DEVICE).table
    mean, remaining = label_kl_triton.reduced(loss, Objective(labels, *table), "mean", 1 / 20000)
    counted = int((labels != -100).sum())
    torch.testing.assert_close(mean.double(), loss.double().sum() / counted)
    torch.testing.assert_close(remaining.item(), 20000 / counted, atol=0, rtol=1e-6)
    everything = Objective(labels.clamp(min=0), *table)
    assert label_kl_triton.reduced(loss, everything, "mean", 1 / 20000)[1].item() == 1.0


def test_bad_label_or_id_makes_its_row_nan_and_touches_nothing_else() -> None:
    from kernels import label_kl_triton

    problem = Problem.random(4, 33, device=DEVICE)
    expected = problem.loss()
    labels, ids = problem.labels.clone(), problem.neighbour_ids.clone()
    labels[:] = torch.tensor([3, 10**9, -5, 7])
    expected = problem.changed(labels=labels.clamp(0, 32)).loss()
    ids[7, 2] = 2**31 - 1
    gradient = torch.empty_like(problem.logits)
    loss = label_kl_triton.focal_label_kl_rows(
        problem.logits, gradient, Objective(labels, ids, problem.neighbour_weights), 1.0, 33
    )
    assert loss.isnan().tolist() == [False, True, True, True]
    assert gradient.isnan().all(1).tolist() == [False, True, True, True]
    torch.testing.assert_close(loss[0].double(), expected[0], atol=1e-5, rtol=1e-5)


def test_row_offsets_beyond_two_to_the_31() -> None:
    """Rows 2^29 float16 apart in memory that is reserved but, but for the rows, never touched."""
    from kernels import label_kl_triton

    problem = Problem.random(6, 33, dtype=torch.float16, device=DEVICE)
    apart = 2**29
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 5 * 2 * apart + 2**30:
        pytest.skip("needs 7 GB of GPU memory")
    logits = torch.empty(5 * apart + 64, dtype=torch.float16, device=DEVICE).as_strided((6, 33), (apart, 1))
    logits.copy_(problem.logits)
    exact = problem.changed(logits=problem.logits.double())
    kl = label_kl(logits, problem.labels, *problem.table)
    expected = reference.label_kl(problem.logits, problem.labels, *problem.table)
    torch.testing.assert_close(kl.double(), expected, atol=1e-5, rtol=1e-5)
    loss = label_kl_triton.focal_label_kl_rows(logits, logits, problem.objective, 1.0, 33)
    torch.testing.assert_close(loss.double(), exact.loss(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.double(), exact.gradient(), atol=1e-3, rtol=1e-3)


def test_training_follows_the_same_path_as_with_the_dense_loss() -> None:
    def train(fused: bool) -> tuple[float, float]:
        problem = Problem.random(8, 40, device=DEVICE, seed=7)
        generator = torch.Generator().manual_seed(8)
        inputs = torch.randn(8, 10, generator=generator).to(DEVICE)
        weight = (0.1 * torch.randn(40, 10, generator=generator)).to(DEVICE).requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=0.05)
        for _ in range(15):
            logits = inputs @ weight.T
            if fused:
                loss = focal_label_kl(logits, *problem.arguments, inplace_backward=True)
            else:
                loss = dense_loss(logits, problem, 2.0, 1.0, 1.0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        accuracy = ((inputs @ weight.T).argmax(1) == problem.labels).float().mean()
        return float(loss.detach()), float(accuracy)

    assert train(fused=True) == pytest.approx(train(fused=False), rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("classes", "dtype"), [(7, torch.float32), (1001, torch.bfloat16), (5000, torch.float16)])
def test_label_kl_scores_candidates(classes: int, dtype: torch.dtype, temperature: float) -> None:
    problem = Problem.random(3, classes, 21, dtype=dtype, device=DEVICE)
    candidates = torch.randint(0, classes, (3, 4), device=DEVICE)
    scores = label_kl(problem.logits, candidates, *problem.table, temperature=temperature)
    expected = reference.label_kl(problem.logits, candidates, *problem.table, temperature=temperature)
    torch.testing.assert_close(scores.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("classes", "rows_at_once"), [(40, 2), (4096, 5), (9001, 2), (9001, 5)])
def test_linear_entry_recomputes_what_it_does_not_keep(
    classes: int, rows_at_once: int, temperature: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import label_kl_triton

    # Two rows at once: the five rows and the columns both come in several parts.
    monkeypatch.setattr(label_kl_triton, "BLOCK_BYTES", rows_at_once * label_kl_triton.BLOCK_COLUMNS * 4)
    problem = Problem.random(5, classes, device=DEVICE)
    problem.labels[3] = -100
    generator = torch.Generator().manual_seed(5)
    shapes = ((5, 16), (classes, 16), (classes,))
    parameters = [torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes]
    loss = linear_focal_label_kl(
        parameters[0],
        parameters[1],
        parameters[2] if bias else None,
        *problem.arguments,
        temperature=temperature,
        reduction="none",
        materialise_bytes=0,
    )
    upstream = torch.randn(5, generator=generator).to(DEVICE)
    loss.backward(upstream)
    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    logits = torch.nn.functional.linear(exact[0], exact[1], exact[2] if bias else None)
    expected = problem.changed(logits=logits).loss(temperature=temperature)
    expected.backward(upstream.double())
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)
    for parameter, exactly in zip(parameters[: 2 + bias], exact, strict=False):
        assert parameter.grad is not None
        assert exactly.grad is not None
        assert norm_error(parameter.grad, exactly.grad) < 2e-6


@pytest.mark.parametrize("alternative", range(4))
def test_every_plan_of_the_benchmark_sweep_gives_the_same_result(alternative: int) -> None:
    from benchmarks.kernels.label_kl import alternative_plans
    from kernels import label_kl_triton

    for classes, dtype in ((4352, torch.bfloat16), (4350, torch.float32), (33000, torch.bfloat16)):
        plans = alternative_plans(classes, dtype.itemsize)
        if alternative >= len(plans):
            continue
        problem = Problem.random(1, classes, dtype=dtype, device=DEVICE)
        gradient = torch.empty_like(problem.logits)
        loss = label_kl_triton.focal_label_kl_rows(
            problem.logits, gradient, problem.objective, 1.0, classes, plan=plans[alternative]
        )
        exact = problem.changed(logits=problem.logits.double())
        torch.testing.assert_close(loss.double(), exact.loss(), atol=3e-5, rtol=1e-5)
        assert norm_error(gradient, exact.gradient()) < (1e-6 if dtype == torch.float32 else 8e-3)


@needs_gpu
def test_more_logits_than_two_to_the_31() -> None:
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GB of GPU memory")
    rows, classes = 24000, 100000
    problem = Problem.random(4, classes, 21, dtype=torch.bfloat16, device=DEVICE)
    logits = problem.logits.repeat(rows // 4, 1).requires_grad_()
    labels = problem.labels.repeat(rows // 4)
    loss = focal_label_kl(logits, labels, *problem.table, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(loss.view(-1, 4), loss[:4].expand(rows // 4, 4))
    assert torch.equal(gradient[-4:], gradient[:4])
    exact = problem.changed(logits=problem.logits.double())
    torch.testing.assert_close(loss[-4:].double(), exact.loss(), atol=3e-5, rtol=1e-5)
    assert norm_error(gradient[-4:], exact.gradient()) < 4e-3


@needs_gpu
def test_replays_in_a_cuda_graph() -> None:
    problem = Problem.random(64, 4352, 21, dtype=torch.bfloat16, device="cuda")
    logits = problem.logits.clone().requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = focal_label_kl(logits, *problem.arguments)
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    for _ in range(3):
        expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    captured[0].zero_()
    captured[1].zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_entry_in_half_precision(dtype: torch.dtype) -> None:
    problem = Problem.random(64, 9001, 21, device="cuda")
    hidden = torch.randn(64, 32, device="cuda", dtype=dtype).requires_grad_()
    weight = torch.randn(9001, 32, device="cuda", dtype=dtype).requires_grad_()
    loss = linear_focal_label_kl(hidden, weight, None, *problem.arguments, reduction="sum", materialise_bytes=0)
    recomputed = torch.autograd.grad(loss, (hidden, weight))
    loss = linear_focal_label_kl(hidden, weight, None, *problem.arguments, reduction="sum")
    materialised = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(recomputed, materialised, strict=True):
        assert norm_error(ours, theirs) < 2e-2


@needs_gpu
def test_compiles_with_inductor() -> None:
    problem = Problem.random(64, 4352, 21, device="cuda")
    weight = torch.randn(4352, 32, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step(x: torch.Tensor) -> torch.Tensor:
        return focal_label_kl(torch.nn.functional.gelu(x) @ weight.T, *problem.arguments)

    eager = torch.autograd.grad(step(hidden), hidden)[0]
    compiled = torch.autograd.grad(torch.compile(step, fullgraph=True)(hidden), hidden)[0]
    assert norm_error(compiled, eager) < 2e-2
