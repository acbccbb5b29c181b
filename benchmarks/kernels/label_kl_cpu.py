"""Kernel 1's torch path on a CPU: loss and gradient of 256 x 4,350 logits against one log-softmax in place.

This is no kernel's speed: it says what training costs where there is no GPU. The limit is one log-softmax that
overwrites the logits; the rivals are what one writes in torch. Variants take turns, call by call, after they were
checked against float64; every call begins with fresh logits, whose copying is not timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.label_kl import ENTRIES, Inputs, dense_loss, gather_loss, random_table
from benchmarks.kernels.timing import Row, Timing, write_measured
from kernels import reference
from kernels.label_kl import focal_label_kl

PACKAGES = ("torch",)
ROWS, CLASSES = 256, 4350


def log_softmax(logits: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor] | None:
    """The limit: neither loss nor gradient."""
    torch.log_softmax(logits, 1, out=logits)
    return None


class Head(torch.autograd.Function):
    """Logits as a classifier hands them on: neither a leaf nor a view, and needed by nobody else."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logits: Tensor) -> Tensor:
        ctx.mark_dirty(logits)  # handed on as it is
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def in_place(logits: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor] | None:
    """The gradient overwrites the logits."""
    leaf = torch.empty_like(logits).requires_grad_()
    loss = focal_label_kl(Head.apply(leaf, logits), *inputs.objective[:3], inplace_backward=True)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def through_autograd(function: Callable[..., Tensor]) -> Callable[[Tensor, Inputs], tuple[Tensor, Tensor] | None]:
    """Loss and a gradient of its own."""

    def call(logits: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        loss = function(leaf, *inputs.objective[:3])
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return call


VARIANTS = {
    "log-softmax in place": log_softmax,
    "focal_label_kl in place": in_place,
    "focal_label_kl": through_autograd(focal_label_kl),
    "torch eager, gathered": through_autograd(gather_loss),
    "torch eager, dense target": through_autograd(dense_loss),
}


def run(threads: int, repetitions: int) -> list[Row]:
    """Every variant on so many threads."""
    torch.set_num_threads(threads)
    case = f"{ROWS} x {CLASSES:,} fp32, K = {ENTRIES - 1}, {threads} thread{'s' * (threads > 1)}"
    logits, labels = 3 * torch.randn(ROWS, CLASSES), torch.randint(0, CLASSES, (ROWS,))
    inputs = Inputs(logits, labels, *random_table(CLASSES, "cpu"), CLASSES)
    expected = reference.focal_label_kl(logits, *inputs.objective[:3]).mean()
    gradient = reference.focal_label_kl_gradient(logits, *inputs.objective[:3]) / ROWS
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    scratch = torch.empty_like(logits)
    for repetition in range(repetitions + 3):
        for name, call in VARIANTS.items():
            scratch.copy_(logits)
            begin = time.perf_counter()
            result = call(scratch, inputs)
            times[name].append(1e6 * (time.perf_counter() - begin))
            if repetition == 0 and result is not None:
                torch.testing.assert_close(result[0].double(), expected, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(result[1].double(), gradient, atol=1e-8, rtol=1e-4)
    timings = {name: Timing.of(found[3:]) for name, found in times.items()}
    limit = timings["log-softmax in place"].median
    return [
        timing.row(case, name, "eager") | {"log_softmaxes": round(timing.median / limit, 2)}
        for name, timing in timings.items()
    ]


def main(quick: bool, output: Path) -> None:
    """Measure with one thread and with all, write label_kl_cpu.json."""
    torch.manual_seed(0)
    rows = [row for threads in sorted({1, len(os.sched_getaffinity(0))}) for row in run(threads, 30 if quick else 200)]
    for row in rows:
        print(f"{row['case']:<44} {row['variant']:<28} {row['median_us']:>9,.0f} µs  x{row['log_softmaxes']}")
    print("Wrote", write_measured("label_kl_cpu", rows, PACKAGES, output))
