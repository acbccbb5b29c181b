"""The parity gate: an exported file answers as PyTorch float32 does, on real inputs, or it is not written.

Every output is compared row by row: cosine and largest absolute difference for what is continuous, agreement of the
first entry for class numbers (the order of classes that are equally improbable means nothing).  Real inputs come from
the products that the bundle carries, each also with its image and with its title left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from .onnx_graphs import GraphSpec

PARITY_BATCH = 7  # odd on purpose: no batch size the exporter saw, and the last batch differs again


@dataclass(frozen=True)
class ParityLimits:
    """What an exported model must keep to. Defaults: float32."""

    min_cosine: float = 0.9999
    max_difference: float = 1e-4
    min_agreement: float = 0.999


@dataclass(frozen=True)
class OutputParity:
    """How one output compares over all rows; `agreement` is for class numbers, the other two for everything else."""

    output: str
    rows: int
    cosine: float | None = None
    difference: float | None = None
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


def check_parity(
    graph: GraphSpec,
    path: Path,
    inputs: Mapping[str, Tensor],
    limits: ParityLimits | None = None,
    *,
    served_inputs: Mapping[str, Tensor] | None = None,
    exact: bool = False,
) -> list[OutputParity]:
    """Compares the file at `path` with `graph.module` on `inputs`.

    Args:
        graph: the model in PyTorch.
        path: its ONNX file.
        inputs: real inputs [N, …] by name, N ≥ 1.
        limits: what is asked for; float32's when None.
        served_inputs: what the file is given instead: outputs of exported models before it, so that their deviations
            count; `inputs` when None.
        exact: run every node as it stands in the file; see `run_onnx`.

    Returns:
        A comparison per output.

    Raises:
        ParityError: an output misses its limit.
    """
    comparisons = compare_with_torch(graph, path, inputs, served_inputs=served_inputs, exact=exact)
    missed = failures(comparisons, limits or ParityLimits())
    if missed:
        raise ParityError(f"{graph.name}: the exported model differs from PyTorch: {'; '.join(missed)}")
    return comparisons


def compare_with_torch(
    graph: GraphSpec,
    path: Path,
    inputs: Mapping[str, Tensor],
    *,
    served_inputs: Mapping[str, Tensor] | None = None,
    exact: bool = False,
) -> list[OutputParity]:
    """The comparisons that `check_parity` judges; arguments as there."""
    expected = run_torch(graph, inputs)
    found = run_onnx(path, inputs if served_inputs is None else served_inputs, list(graph.outputs), exact=exact)
    return [compare(name, expected[name], found[name]) for name in graph.outputs]


def worst(comparisons: Sequence[Sequence[OutputParity]]) -> list[OutputParity]:
    """Comparisons of the same outputs on several batches as one: all rows, the worst figure of each."""

    def extreme(choose: Callable[[list[float]], float], figures: Sequence[float | None]) -> float | None:
        known = [figure for figure in figures if figure is not None]
        return float(choose(known)) if known else None

    return [
        OutputParity(
            batches[0].output,
            sum(batch.rows for batch in batches),
            cosine=extreme(np.min, [batch.cosine for batch in batches]),
            difference=extreme(np.max, [batch.difference for batch in batches]),
            agreement=extreme(np.min, [batch.agreement for batch in batches]),
        )
        for batches in zip(*comparisons, strict=True)
    ]


def failures(comparisons: Sequence[OutputParity], limits: ParityLimits) -> list[str]:
    """What misses its limit, a sentence each."""
    return [sentence for sentence in (comparison.failure(limits) for comparison in comparisons) if sentence]


@torch.no_grad()
def run_torch(graph: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Every output [N, …] of the PyTorch module on `inputs`."""
    output = graph.module.eval()(*(inputs[name] for name in graph.inputs))
    outputs = output if isinstance(output, tuple) else (output,)
    return {name: tensor.numpy() for name, tensor in zip(graph.outputs, outputs, strict=True)}


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


def compare(output: str, expected: np.ndarray, found: np.ndarray) -> OutputParity:
    """Compares one output, [N, …] each; the cosine is the smallest over the rows."""
    rows = len(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{output}: PyTorch gives {expected.dtype} {expected.shape}, the file {found.dtype} {found.shape}"
        )
    if np.issubdtype(expected.dtype, np.integer):
        return OutputParity(output, rows, agreement=float(np.mean(expected[:, 0] == found[:, 0])))
    # A single number has no direction within its row: there the cosine is taken over all rows.
    a, b = (array.reshape(rows, -1).astype(np.float64) for array in (expected, found))
    if a.shape[1] == 1:
        a, b = a.T, b.T
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return OutputParity(output, rows, cosine=float(cosine.min()), difference=float(np.abs(a - b).max()))
