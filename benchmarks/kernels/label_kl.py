"""Kernel 1 against its floor and its rivals: loss and gradient of focal + label-neighbour KL, and the linear entry.

Every variant is checked against float64 before it is timed (timing.py), in the same run: median, p20 and p80. "graph"
replays the call from a CUDA graph: the device's time without Python's. The floor is a copy of the same bytes, measured
in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.roofline import plot
from benchmarks.kernels.timing import (
    Row,
    Timing,
    gpu_folder,
    graph_of,
    not_measured,
    reason,
    time_calls,
    write_measured,
)
from benchmarks.results import NOT_MEASURED
from kernels import reference
from kernels.label_kl import focal_label_kl, label_kl, linear_focal_label_kl
from kernels.label_kl_objective import Objective

PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy")
ROWS, ENTRIES = 8192, 21
Result = tuple[Tensor, Tensor]
"""Mean loss and its gradient with respect to the logits."""


@dataclass(frozen=True)
class Case:
    """Rows of `classes` logits stored `width` wide; `goal_us` from the project's performance goals."""

    name: str
    classes: int
    width: int
    dtype: torch.dtype
    goal_us: float

    @property
    def bytes(self) -> int:
        # Logits read once, gradient written once. Labels, table rows and losses (0.2 % at most) are left out.
        return 2 * ROWS * self.classes * self.dtype.itemsize


CASES = (
    Case("4,350 bf16, rows of 4,352", 4350, 4352, torch.bfloat16, 38),
    Case("4,350 bf16", 4350, 4350, torch.bfloat16, 42),
    Case("4,350 fp32, rows of 4,352", 4350, 4352, torch.float32, 74),
    Case("21,841 bf16, rows of 21,888", 21841, 21888, torch.bfloat16, 185),
    Case("100,000 bf16", 100000, 100000, torch.bfloat16, 900),
)
QUICK_CASES = CASES[:1]


@dataclass
class Inputs:
    """One set of inputs of a case; several are in rotation."""

    logits: Tensor
    labels: Tensor
    ids: Tensor
    weights: Tensor
    classes: int
    exact: dict[float, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gradient = torch.full_like(self.logits, float("nan"))
        self.leaf = self.logits.detach().requires_grad_()
        # Rivals get rows without padding: cutting it off would cost them a copy in backward.
        self.plain = self.logits[:, : self.classes].contiguous().detach().requires_grad_()

    @property
    def table(self) -> tuple[Tensor, Tensor]:
        return self.ids, self.weights

    @property
    def objective(self) -> Objective:
        return Objective(self.labels, *self.table)


def random_table(classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Neighbour ids with the class in slot 0, and weights whose rows sum to one."""
    ids = torch.randint(0, classes, (classes, ENTRIES), device=device, dtype=torch.int32)
    ids[:, 0] = torch.arange(classes, device=device)
    weights = torch.rand(classes, ENTRIES, device=device) + 0.05
    return ids, weights / weights.sum(1, keepdim=True)


def make_inputs(case: Case, device: str, rows: int = ROWS, sets: int | None = None) -> list[Inputs]:
    """Enough sets that a round of them is several times the L2 cache."""
    table = random_table(case.classes, device)
    sets = sets or max(2, math.ceil(400e6 / (rows * case.width * case.dtype.itemsize)))
    made = []
    for _ in range(sets):
        logits = (3 * torch.randn(rows, case.width, device=device, dtype=torch.float32)).to(case.dtype)
        made.append(Inputs(logits, torch.randint(0, case.classes, (rows,), device=device), *table, case.classes))
    return made


# Variants: each returns the mean loss and the gradient with respect to the logits.


def ours(inputs: Inputs) -> Result:
    """What a training step calls."""
    loss = focal_label_kl(inputs.leaf, inputs.labels, *inputs.table, num_classes=inputs.classes)
    return loss.detach(), torch.autograd.grad(loss, inputs.leaf)[0]


def ours_kernel(inputs: Inputs, plan: Any = None) -> Result:
    """The one kernel launch of the forward call: row losses, and the gradient of their mean."""
    from kernels import label_kl_triton

    scale = 1.0 / len(inputs.logits)
    loss = label_kl_triton.focal_label_kl_rows(
        inputs.logits, inputs.gradient, inputs.objective, scale, inputs.classes, plan
    )
    return loss, inputs.gradient


def gather_loss(logits: Tensor, labels: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What one writes without a dense target: gather K+1 log-probabilities. Entropy as in the table's rows."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    of_label = log_p.gather(1, labels[:, None])[:, 0]
    w, n = weights[labels], ids[labels].long()
    # Mass of equal ids put together, as the definition wants.
    mass = ((n[:, :, None] == n[:, None, :]) * w[:, None, :]).sum(-1)
    kl = (w * (mass.log() - log_p.gather(1, n))).sum(-1)
    return (-((1 - of_label.exp()) ** 2) * of_label + kl).mean()


def dense_loss(logits: Tensor, labels: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What one writes first: a dense target distribution [B, C] and kl_div."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    of_label = log_p.gather(1, labels[:, None])[:, 0]
    target = torch.zeros_like(log_p).scatter_add_(1, ids[labels].long(), weights[labels])
    kl = torch.nn.functional.kl_div(log_p, target, reduction="none").sum(-1)
    return (-((1 - of_label.exp()) ** 2) * of_label + kl).mean()


def through_autograd(function: Callable[..., Tensor]) -> Callable[[Inputs], Result]:
    """Loss and gradient of a rival's loss function, on rows without padding."""

    def call(inputs: Inputs) -> Result:
        loss = function(inputs.plain, inputs.labels, *inputs.table)
        return loss.detach(), torch.autograd.grad(loss, inputs.plain)[0]

    return call


def liger() -> Callable[[Inputs], Result]:
    """Liger's cross-entropy (which has no focal term, gamma = 0, and overwrites its input) + gathered KL."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    def loss(logits: Tensor, labels: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        w, n = weights[labels], ids[labels].long()
        mass = ((n[:, :, None] == n[:, None, :]) * w[:, None, :]).sum(-1)
        log_q = logits.gather(1, n).float() - torch.logsumexp(logits.float(), dim=1, keepdim=True)
        kl = (w * (mass.log() - log_q)).sum(-1).mean()
        return liger_cross_entropy(logits.clone(), labels) + kl

    return through_autograd(loss)


def copy(inputs: Inputs) -> Result:
    """As many bytes read and written, and nothing else."""
    inputs.gradient.copy_(inputs.logits)
    return inputs.logits, inputs.gradient


@dataclass(frozen=True)
class Variant:
    """A way to compute a case; `make` may raise ImportError for what is not installed."""

    name: str
    make: Callable[[], Callable[[Inputs], Result]]
    gamma: float = 2.0
    largest_classes: int = 10**9
    in_quick: bool = True
    rows_out: bool = False
    """The first result is the loss of each row, not their mean."""


def compiled(function: Callable[..., Tensor]) -> Callable[[Inputs], Result]:
    """Through torch.compile; CUDA graphs are captured by this benchmark, for every variant alike."""
    return through_autograd(torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False))


VARIANTS = (
    Variant("focal_label_kl, kernel alone", lambda: ours_kernel, rows_out=True),
    Variant("focal_label_kl, forward + backward", lambda: ours),
    Variant("torch eager, dense target", lambda: through_autograd(dense_loss)),
    Variant("torch eager, gathered", lambda: through_autograd(gather_loss)),
    Variant("torch.compile max-autotune, dense target", lambda: compiled(dense_loss), in_quick=False),
    Variant("torch.compile max-autotune, gathered", lambda: compiled(gather_loss)),
    Variant("Liger cross-entropy + gathered KL (no focal)", liger, gamma=0.0),
)


# Correctness.


def exact(inputs: Inputs, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """float64: loss of every row, a sample of rows, their gradient of the mean loss. Computed once an input."""
    if gamma in inputs.exact:
        return inputs.exact[gamma]
    rows = len(inputs.logits)
    losses = [
        reference.focal_label_kl(
            inputs.logits[at : at + 256, : inputs.classes], inputs.labels[at : at + 256], *inputs.table, gamma=gamma
        )
        for at in range(0, rows, 256)
    ]
    sample = torch.linspace(0, rows - 1, min(64, rows), device=inputs.logits.device).long()
    gradient = reference.focal_label_kl_gradient(
        inputs.logits[sample, : inputs.classes], inputs.labels[sample], *inputs.table, gamma=gamma
    )
    inputs.exact[gamma] = torch.cat(losses), sample, gradient / rows
    return inputs.exact[gamma]


def check(call: Callable[[Inputs], Result], inputs: Inputs, variant: Variant) -> None:
    """Raise unless the loss and a sample of gradient rows are right; NaN never passes."""
    losses, sample, gradient = exact(inputs, variant.gamma)
    loss, computed = call(inputs)
    expected = losses if variant.rows_out else losses.mean()
    loss_error = float((loss.double() - expected).norm() / expected.norm())
    error = float((computed[sample, : inputs.classes].double() - gradient).norm() / gradient.norm())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[inputs.logits.dtype]
    if not loss_error <= 1e-4:
        raise ValueError(f"wrong: loss off by {loss_error:.1e} of its size")
    if not error <= limit:
        raise ValueError(f"wrong: gradient off by {error:.1e} of its norm, limit {limit:.0e}")
    if inputs.classes < computed.shape[1] and bool((computed[:, inputs.classes :] != 0).any()):
        raise ValueError("wrong: gradient of padding columns is not zero")


def bound(call: Callable[[Inputs], Result], sets: list[Inputs]) -> list[Callable[[], Result]]:
    """The call with each set of inputs."""
    return [lambda inputs=inputs: call(inputs) for inputs in sets]  # type: ignore[misc]


def measured(
    case: str, variant: str, mode: str, timing: Timing, bytes_moved: int, floor_us: float | None, **more: Any
) -> Row:
    """A row of the table and of the JSON file."""
    row = timing.row(case, variant, mode)
    if bytes_moved:
        row["gbytes_per_s"] = round(bytes_moved / timing.median / 1e3, 1)
    if floor_us is not None:
        row["floor_us"] = round(floor_us, 2)
        row["percent_of_floor"] = round(100 * floor_us / timing.median, 1)
    return row | more


def run_case(case: Case, quick: bool) -> Iterator[Row]:
    """Every variant of a case, eager and as a CUDA graph, after the copy that sets the floor."""
    repetitions = 30 if quick else 100
    sets = make_inputs(case, "cuda")
    calls = bound(copy, sets)
    floor = time_calls([graph_of(call) for call in calls], repetitions)
    padded = case.bytes * case.width // case.classes
    # The copy moves the padding too; the floor is for the bytes of the classes.
    floor_us = floor.median * case.bytes / padded
    yield measured(case.name, "copy of the same bytes", "graph", floor, padded, floor_us)
    for variant in VARIANTS:
        if quick and not variant.in_quick:
            continue
        more = {"goal_us": case.goal_us} if variant.name.startswith("focal_label_kl") else {}
        try:
            call = variant.make()
            check(call, sets[0], variant)
            timing = time_calls(bound(call, sets), repetitions)
            yield measured(case.name, variant.name, "eager", timing, case.bytes, floor_us, **more)
        except Exception as error:  # A rival that fails is a row of the table, not the end of the run.
            yield not_measured(case.name, variant.name, "eager", reason(error))
            torch.cuda.empty_cache()
            continue
        try:
            graphs = [graph_of(call) for call in bound(call, sets)]
            timing = time_calls(graphs, repetitions)
            yield measured(case.name, variant.name, "graph", timing, case.bytes, floor_us, **more)
            del graphs
        except Exception as error:
            yield not_measured(case.name, variant.name, "graph", reason(error))
        torch.cuda.empty_cache()
    if not quick:
        yield from run_plans(case, sets, floor_us, repetitions)


def alternative_plans(width: int, element_size: int) -> list[Any]:
    """The kernel's plan for a width, first, and others worth timing against it."""
    from kernels import label_kl_triton as kernel

    plans = [kernel.plan_row(width, element_size)]
    if width <= 32768:
        for num_warps in (1, 2, 4, 8, 16):
            if 16 <= width / (32 * num_warps) <= 140:
                plans.append(kernel.single_read_plan(width, element_size, num_warps))
    if width > 16384:
        for num_warps in (8, 16, 32):
            for kept in (8192, 16384, 32768):
                for stages in (2, 4, 6):
                    if width > kept + 8192 and kept // num_warps <= 2048:
                        plans.append(kernel.two_read_plan(width, element_size, num_warps, kept, stages))
    return list(dict.fromkeys(plans))


def run_plans(case: Case, sets: list[Inputs], floor_us: float, repetitions: int) -> Iterator[Row]:
    """The kernel alone under every plan: where a row beats the first, the plan's table wants changing."""
    for index, plan in enumerate(alternative_plans(case.width, case.dtype.itemsize)):
        call = partial(ours_kernel, plan=plan)
        how = "+".join(str(tiles) for tiles in plan.tiles if tiles) + " tiles"
        if not plan.single_read:
            how = f"{plan.loops}x{plan.block_tiles} tiles, {plan.kept_tiles} kept, {plan.stages} stages"
        name = f"plan{' in use' if index == 0 else ''}: {plan.num_warps} warps, {how}"
        try:
            sets[0].gradient.fill_(float("nan"))
            check(call, sets[0], VARIANTS[0])
            timing = time_calls([graph_of(each) for each in bound(call, sets)], repetitions)
            yield measured(case.name, name, "graph", timing, case.bytes, floor_us)
        except Exception as error:
            yield not_measured(case.name, name, "graph", reason(error))


# The linear entry: hidden [B, d] x weight [C, d].


@dataclass(frozen=True)
class LinearCase:
    """The classifier and the loss together."""

    name: str
    classes: int
    width: int = 512
    goal_us: float | None = None


LINEAR_CASES = (
    LinearCase("linear, 4,350, d = 512, bf16", 4350),
    LinearCase("linear, 100,000, d = 512, bf16", 100000, goal_us=5300),
)


@dataclass
class LinearInputs:
    """Leaves and labels of a linear case."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    ids: Tensor
    weights: Tensor


LinearLoss = Callable[[LinearInputs], Tensor]


def linear_ours(materialise_bytes: int | None) -> LinearLoss:
    """The front door, with a limit for the logits that are written as a whole."""
    more: dict[str, int] = {} if materialise_bytes is None else {"materialise_bytes": materialise_bytes}
    return lambda x: linear_focal_label_kl(x.hidden, x.weight, None, x.labels, x.ids, x.weights, **more)  # type: ignore[arg-type]


def linear_gathered(x: LinearInputs) -> Tensor:
    """cuBLAS and the gathered loss in eager torch."""
    logits = torch.nn.functional.linear(x.hidden, x.weight)
    return gather_loss(logits, x.labels, x.ids, x.weights)


def linear_liger() -> LinearLoss:
    """Liger's fused linear cross-entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda x: liger_fused_linear_cross_entropy(x.hidden, x.weight, x.labels)


def linear_cut() -> LinearLoss:
    """Apple's cut cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda x: linear_cross_entropy(x.hidden, x.weight, x.labels)


LINEAR_VARIANTS: tuple[tuple[str, Callable[[], LinearLoss], str], ...] = (
    ("linear_focal_label_kl, by size", lambda: linear_ours(None), "all"),
    ("linear_focal_label_kl, recomputed", lambda: linear_ours(0), "all"),
    ("cuBLAS + focal_label_kl in place", lambda: linear_ours(2**62), "all"),
    ("torch eager, gathered", lambda: linear_gathered, "all"),
    ("Liger fused linear cross-entropy (no focal, no KL)", linear_liger, "cross-entropy"),
    ("cut-cross-entropy (no focal, no KL)", linear_cut, "cross-entropy"),
)


def linear_exact(x: LinearInputs, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """float64, a few rows at a time: mean loss, gradients of hidden (all rows) and of weight."""
    rows = len(x.hidden)
    hidden, weight = x.hidden.detach().double(), x.weight.detach().double()
    of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    total = hidden.new_zeros(())
    for at in range(0, rows, 512):
        part = slice(at, at + 512)
        logits, labels = hidden[part] @ weight.T, x.labels[part]
        if loss == "cross-entropy":
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradient = logits.softmax(1)
            gradient[torch.arange(len(labels), device=labels.device), labels] -= 1
        else:
            total += reference.focal_label_kl(logits, labels, x.ids, x.weights).sum()
            gradient = reference.focal_label_kl_gradient(logits, labels, x.ids, x.weights)
        of_hidden[part] = gradient @ weight
        of_weight += gradient.T @ hidden[part]
    return total / rows, of_hidden / rows, of_weight / rows


def run_linear(case: LinearCase, quick: bool) -> Iterator[Row]:
    """Forward + backward of every variant, with the memory it takes beyond inputs and gradients."""
    repetitions = 10 if quick else 30
    ids, weights = random_table(case.classes, "cuda")
    hidden = torch.randn(ROWS, case.width, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(case.classes, case.width, device="cuda") * 3 / case.width**0.5).bfloat16().requires_grad_()
    x = LinearInputs(hidden, weight, torch.randint(0, case.classes, (ROWS,), device="cuda"), ids, weights)
    # The floor: three matrix products of 2 B C d operations at the rate that this GPU reaches on a large square one.
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    per_us = 2 * 8192**3 / time_calls([lambda: square @ square], 20).median
    floor_us = 3 * 2 * ROWS * case.classes * case.width / per_us
    more = {} if case.goal_us is None else {"goal_us": case.goal_us, "goal_extra_mbytes": 300}
    exactly = {}
    for name, make, loss in LINEAR_VARIANTS:
        try:
            function = make()

            def step(function: LinearLoss = function) -> tuple[Tensor, ...]:
                value = function(x)
                return value.detach(), *torch.autograd.grad(value, (x.hidden, x.weight))

            if loss not in exactly:
                exactly[loss] = linear_exact(x, loss)
            for which, value, expected in zip(("loss", "hidden", "weight"), step(), exactly[loss], strict=True):
                error = float((value.double() - expected).norm() / expected.norm())
                if not error <= 2e-2:
                    raise ValueError(f"wrong: {which} off by {error:.1e} of its norm, limit 2e-02")
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            kept = step()
            torch.cuda.synchronize()
            extra = torch.cuda.max_memory_allocated() - before - sum(t.numel() * t.element_size() for t in kept)
            del kept
            timing = time_calls([step], repetitions)
            memory = {"extra_mbytes": round(extra / 1e6, 1)}
            yield measured(case.name, name, "eager", timing, 0, floor_us, **memory, **(more if loss == "all" else {}))
        except Exception as error:
            yield not_measured(case.name, name, "eager", reason(error))
        torch.cuda.empty_cache()


def run_serving(quick: bool) -> Iterator[Row]:
    """label_kl of the top candidate, as serving calls it, against the same in eager torch."""
    for rows in (8, 1024):
        case = Case(f"label_kl, {rows} rows of 4,350, fp32", 4350, 4350, torch.float32, 0)
        sets = make_inputs(case, "cuda", rows, 8)

        def eager(x: Inputs) -> Tensor:
            w, n = x.weights[x.labels], x.ids[x.labels].long()
            mass = ((n[:, :, None] == n[:, None, :]) * w[:, None, :]).sum(-1)
            return (w * (mass.log() - x.logits.gather(1, n) + x.logits.logsumexp(1, keepdim=True))).sum(-1)

        def fused(x: Inputs) -> Tensor:
            return label_kl(x.logits, x.labels, *x.table)

        # Read once; nothing of that size is written.
        bytes_moved = rows * case.classes * 4
        expected = reference.label_kl(sets[0].logits, sets[0].labels, *sets[0].table)
        for name, function in (("label_kl", fused), ("torch eager, gathered", eager)):
            try:
                torch.testing.assert_close(function(sets[0]).double(), expected, atol=1e-4, rtol=1e-4)
                calls = [graph_of(lambda x=x, f=function: f(x)) for x in sets]  # type: ignore[misc]
                timing = time_calls(calls, 30 if quick else 100)
                yield measured(case.name, name, "graph", timing, bytes_moved, None)
            except Exception as error:
                yield not_measured(case.name, name, "graph", reason(error))


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    heads = f"{'median':>10} {'p20':>9} {'p80':>9} {'GB/s':>7} {'floor':>9} {'%':>6}"
    lines = [f"{'case':<38} {'variant':<52} {'mode':<6} {heads}   (times in microseconds)"]
    for row in rows:
        head = f"{row['case']:<38} {row['variant'][:52]:<52} {row['mode']:<6} "
        if row["median_us"] == NOT_MEASURED:
            lines.append(head + f"{NOT_MEASURED}: {row['why']}")
            continue
        notes = [f"goal {row['goal_us']:g} us"] if row.get("goal_us") else []
        notes += [f"extra {row['extra_mbytes']:g} MB"] if "extra_mbytes" in row else []
        lines.append(
            head
            + f"{row['median_us']:>10} {row['p20_us']:>9} {row['p80_us']:>9} {row.get('gbytes_per_s', ''):>7} "
            + f"{row.get('floor_us', ''):>9} {row.get('percent_of_floor', ''):>6} {' '.join(notes)}"
        )
    return "\n".join(lines)


def without_gpu(quick: bool, output: Path) -> None:
    """Say so, compile ahead of time instead, and leave no file behind."""
    print("No GPU: kernel times are not measured. Compiling ahead of time instead.", flush=True)
    from kernels import compile_report

    compiled_rows = compile_report.report((90,) if quick else compile_report.ARCHITECTURES)
    print(compile_report.markdown(compiled_rows))
    if not quick:
        compile_report.write(compiled_rows, output)
        print("Wrote", output / "compile_report.json", "and .md")


def main(quick: bool, output: Path) -> None:
    """Measure everything, print as it comes, write label_kl.json into the GPU's folder of `output`."""
    if not torch.cuda.is_available():
        without_gpu(quick, output)
        return
    folder = gpu_folder(output, torch.cuda.get_device_name())
    torch.manual_seed(0)
    rows: list[Row] = []

    def keep(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            print(table([row]).splitlines()[1], flush=True)
        write_measured("label_kl", rows, PACKAGES, folder)
        torch.cuda.empty_cache()

    print(table([]))
    for case in QUICK_CASES if quick else CASES:
        keep(run_case(case, quick))
    keep(run_serving(quick))
    for linear in LINEAR_CASES[1:] if quick else LINEAR_CASES:
        keep(run_linear(linear, quick))
    print()
    print(table(rows))
    try:
        print("Wrote", folder / "label_kl.json", plot(folder / "label_kl.json"))
    except ImportError:
        print("no roofline: matplotlib is not installed (pip install matplotlib)")
