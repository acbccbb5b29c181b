"""The parity gate: an exported file answers as PyTorch float32 does, on real inputs, or it is not written.

Every output is compared row by row: cosine and largest absolute difference for what is continuous, agreement of the
first entry for class numbers (the order of classes that are equally improbable means nothing), and of the arg-max where
it is the answer.  A changed answer counts however close the candidates were in float32: there is no margin below which
the gate looks away.  Real inputs are products of the bundle and, when one is given, of a feed's validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from .onnx_graphs import GraphSpec

PARITY_BATCH = 7  # odd on purpose: no batch size the exporter saw, and the last batch differs again
TORCH_BATCH = 64


@dataclass(frozen=True)
class ParityLimits:
    """What an exported model must keep to. Defaults: float32."""

    min_cosine: float = 0.9999
    max_difference: float = 1e-4
    min_agreement: float = 0.999


@dataclass(frozen=True)
class OutputParity:
    """How one output compares.

    Args:
        output: its name.
        rows: how many were compared.
        cosine, difference: the smallest and the largest over the rows; None for class numbers.
        decisions: how many answers the output holds, None when it decides nothing.
        agreement: the share of them that are the same.
    """

    output: str
    rows: int
    cosine: float | None = None
    difference: float | None = None
    decisions: int | None = None
    agreement: float | None = None

    def failure(self, limits: ParityLimits) -> str:
        """Which limit is missed, "" for none. A value that is not a number misses its limit."""
        if self.agreement is not None and not self.agreement >= limits.min_agreement:
            return f"{self.output}: top-1 agreement is {self.agreement:.4f}, must be at least {limits.min_agreement}"
        if self.cosine is not None and not self.cosine >= limits.min_cosine:
            return f"{self.output}: cosine is {self.cosine:.6f}, must be at least {limits.min_cosine}"
        if self.difference is not None and not self.difference <= limits.max_difference:
            return f"{self.output}: a value differs by {self.difference:.2e}, may differ by {limits.max_difference:.0e}"
        return ""


class ParityError(RuntimeError):
    """An exported model answers differently from PyTorch; names the model, the output and the figure."""


def worst(comparisons: Sequence[Sequence[OutputParity]]) -> list[OutputParity]:
    """Comparisons of the same outputs on several batches as one: all rows and decisions, the worst of other figures."""

    def extreme(choose: Callable[[list[float]], float], figures: Sequence[float | None]) -> float | None:
        known = [figure for figure in figures if figure is not None]
        return float(choose(known)) if known else None

    return [
        OutputParity(
            batches[0].output,
            sum(batch.rows for batch in batches),
            cosine=extreme(np.min, [batch.cosine for batch in batches]),
            difference=extreme(np.max, [batch.difference for batch in batches]),
            **_pooled(batches),
        )
        for batches in zip(*comparisons, strict=True)
    ]


def _pooled(batches: Sequence[OutputParity]) -> dict[str, Any]:
    """Decisions and agreement of several batches together."""
    judged = [
        (batch.decisions, batch.agreement) for batch in batches if batch.decisions and batch.agreement is not None
    ]
    decisions = sum(count for count, _ in judged)
    same = sum(count * agreement for count, agreement in judged)
    return {"decisions": decisions, "agreement": same / decisions} if decisions else {}


def failures(comparisons: Sequence[OutputParity], limits: ParityLimits) -> list[str]:
    """What misses its limit, a sentence each."""
    return [sentence for sentence in (comparison.failure(limits) for comparison in comparisons) if sentence]


@torch.no_grad()
def run_torch(graph: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Every output [N, …] of the PyTorch module on `inputs`."""
    module = graph.module.eval()
    parts = []
    for batch in split_rows({name: inputs[name] for name in graph.inputs}, TORCH_BATCH):
        output = module(*batch.values())
        parts.append(output if isinstance(output, tuple) else (output,))
    columns = zip(*parts, strict=True)
    return {name: torch.cat(column).numpy() for name, column in zip(graph.outputs, columns, strict=True)}


def run_onnx(
    path: Path, inputs: Mapping[str, Tensor], outputs: list[str], *, exact: bool = False
) -> dict[str, np.ndarray]:
    """Every output [N, …] of an ONNX file on `inputs`, computed in several batches of different sizes.

    `exact`: without graph optimisation, for files meant for another runtime: fused, a rounding would be lost, and a
    float8 node computed by something that a CPU does not have.
    """
    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
        for batch in split_rows(inputs, PARITY_BATCH)
    ]
    return {name: np.concatenate(column) for name, column in zip(outputs, zip(*parts, strict=True), strict=True)}


def split_rows(inputs: Mapping[str, Tensor], rows: int) -> list[dict[str, Tensor]]:
    """A batch in parts of so many rows; whole when its inputs are of different lengths, as a ragged batch's are."""
    lengths = {len(tensor) for tensor in inputs.values()}
    step = rows if len(lengths) == 1 else max(lengths)
    return [
        {name: tensor[start : start + step] for name, tensor in inputs.items()}
        for start in range(0, max(lengths), step)
    ]


def compare(output: str, expected: np.ndarray, found: np.ndarray, *, choice: bool = False) -> OutputParity:
    """Compares one output, [N, …] each.

    `choice`: the arg-max over the last axis is an answer wherever not all is zero, so its agreement is counted beside
    the other figures.

    Raises:
        ParityError: shape or type differ.
    """
    rows = len(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{output}: PyTorch gives {expected.dtype} {expected.shape}, the file {found.dtype} {found.shape}"
        )
    if np.issubdtype(expected.dtype, np.integer):
        return OutputParity(output, rows, decisions=rows, agreement=float(np.mean(expected[:, 0] == found[:, 0])))
    decided = {}
    if choice:
        same = (expected.argmax(-1) == found.argmax(-1))[expected.any(-1)]  # all zeros: padding of a smaller product
        decided = {"decisions": same.size, "agreement": float(same.mean())}
    # A single number has no direction within its row: there the cosine is taken over all rows.
    a, b = (array.reshape(rows, -1).astype(np.float64) for array in (expected, found))
    if a.shape[1] == 1:
        a, b = a.T, b.T
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    difference = float(np.abs(a - b).max())
    return OutputParity(output, rows, cosine=float(cosine.min()), difference=difference, **decided)
