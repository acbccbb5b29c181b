"""The precision of an exported graph: what it must keep to, and how the nodes that need float32 are found.

A graph is lowered as a whole first.  Where parity is missed, nodes stay in float32, and the report lists them.  16-bit
floats fail at single nodes (an overflow, a long sum): delta debugging finds the operator types, then the nodes of these
types.  8-bit errors add up over all nodes: they are ranked by the error that each makes alone, and the fewest of the
worst stay.  The figures are those of the parity gate, the system's answers included.
"""

from __future__ import annotations

import bisect
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from .bisection import fewest_kept
from .chain import Chain
from .float_types import BFLOAT16, FLOAT16, lower_floats, lowerable_nodes
from .onnx_graphs import ExportError, GraphSpec, save_onnx
from .parity import OutputParity, ParityError, ParityLimits, failures, run_onnx, split_rows
from .quantization import Quantization, Quantizer


class Precision(StrEnum):
    """What a graph computes in. INT8 is static, a function of a row alone; INT8_DYNAMIC is not (see quantization)."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_DYNAMIC = "int8-dynamic"
    FP8 = "fp8"


class Runtime(StrEnum):
    """What an exported repository is for: it decides the files, and how int8 graphs look."""

    CPU = "cpu"
    GPU = "gpu"
    TENSORRT = "tensorrt"


LIMITS: dict[Precision, ParityLimits] = {
    Precision.FP32: ParityLimits(),
    # Mantissas of 11, 8 and about 7 bits.  What differs most is neighbour_kl, a divergence with values around 10;
    # embeddings and probabilities are held by the cosine.
    Precision.FP16: ParityLimits(min_cosine=0.999, max_difference=0.1, min_agreement=0.999),
    Precision.BF16: ParityLimits(min_cosine=0.99, max_difference=1.0, min_agreement=0.995),
    # Not the 99.9 % of float16: for those, eleven nodes of the fashion categorizer stay in float32, its first
    # convolution among them, and of the 1.6 times that int8 is faster at batch 8 1.3 remain, since ONNX Runtime then
    # pools integers in a slow layout. With nothing kept 99.78 % of the gate's first answers are the same, with that
    # convolution kept 99.72 %; the smallest cosine of probabilities is 0.974 then.
    Precision.INT8: ParityLimits(min_cosine=0.97, max_difference=1.5, min_agreement=0.995),
    Precision.INT8_DYNAMIC: ParityLimits(min_cosine=0.99, max_difference=1.5, min_agreement=0.999),
    Precision.FP8: ParityLimits(min_cosine=0.98, max_difference=2.0, min_agreement=0.99),
}

ALLOWED: dict[Runtime, tuple[Precision, ...]] = {
    # ONNX Runtime on a CPU converts float16 back and forth (slower than float32) and has no bfloat16 kernels.
    Runtime.CPU: (Precision.FP32, Precision.INT8, Precision.INT8_DYNAMIC, Precision.FP16),
    Runtime.GPU: (Precision.FP16, Precision.FP32, Precision.BF16),
    Runtime.TENSORRT: (Precision.FP16, Precision.FP32, Precision.BF16, Precision.INT8, Precision.FP8),
}
"""Precisions of a target, its default first."""


SENSITIVITY_ROWS = 64


@dataclass(frozen=True)
class LoweredGraph:
    """What became of a graph.

    Args:
        kept: nodes left in float32 because parity asks for it, as "operator name".
        runnable: the file to run here: itself, or for a GPU's floats its twin that rounds likewise, to be removed.
    """

    kept: list[str]
    runnable: Path


def choose_precision(target: Runtime, precision: Precision | None, of_system: Sequence[Precision] = ()) -> Precision:
    """The precision asked for, or the default: that of the system where it has its own, else the target's.

    Raises:
        ExportError: the target cannot run it.
    """
    allowed = of_system or ALLOWED[target]
    if precision is None:
        return allowed[0]
    if precision not in allowed:
        raise ExportError(f"target {target} runs {', '.join(allowed)}, not {precision}")
    return precision


def lower_graph(
    graph: GraphSpec,
    path: Path,
    precision: Precision,
    target: Runtime,
    chain: Chain,
    calibration: Sequence[Mapping[str, Tensor]],
    limits: ParityLimits | None = None,
) -> LoweredGraph:
    """Replaces the float32 file at `path` by one in a lower precision that passes parity.

    Args:
        graph: the model in PyTorch, one of the chain's.
        path: its ONNX file in float32; left alone when an error is raised.
        precision: see `Precision`; FP32 changes nothing.
        target: what will run the file.
        chain: the system on real inputs; parity is that of the graph's outputs and of what comes out in the end.
        calibration: batches of real inputs [M, …] by name that int8 and fp8 ranges are measured on.
        limits: what to keep to; the precision's own when None.

    Raises:
        ParityError: not even a graph with all of them in float32 keeps to the limits.
        ExportError: a graph cannot be lowered, or calibration data is missing.
    """
    if precision is Precision.FP32:
        return LoweredGraph([], path)
    limits = limits or LIMITS[precision]
    exact = target is not Runtime.CPU
    lowered = path.with_name("lowered.onnx")
    found: list[OutputParity] = []

    def passes() -> bool:
        found[:] = chain.compare(graph, lowered, exact=exact)
        return not failures(found, limits)

    try:
        with tempfile.TemporaryDirectory() as folder:
            if precision in (Precision.FP16, Precision.BF16):
                element_type = FLOAT16 if precision is Precision.FP16 else BFLOAT16
                model = onnx.load(path)
                candidates = lowerable_nodes(model, element_type)

                def write_floats(keep: Sequence[str], *, rounded: bool = exact) -> None:
                    # On a CPU there are no bfloat16 kernels, and float16 nodes run in float32 with the casts between
                    # them taken out, where nothing overflows: the graph that rounds as a GPU does stands in for one
                    # that a GPU will run.
                    save_onnx(lower_floats(model, element_type, keep, rounded=rounded), lowered)

                def holds(keep: Sequence[str]) -> bool:
                    write_floats(keep)
                    return passes()

                kept = _fewest_nodes(candidates, holds)
            else:
                quantizer = Quantizer(path, quantization_method(precision, target), calibration, Path(folder))
                candidates = quantizer.nodes
                kept = _worst_nodes(graph, path, lowered, quantizer, passes, exact=exact)
            if kept is None:
                raise ParityError(
                    f"{graph.name}: no choice of float32 nodes makes {precision} pass: "
                    f"{'; '.join(failures(found, limits))}"
                )
            runnable = path
            if precision in (Precision.FP16, Precision.BF16):
                if exact:
                    runnable = path.with_name("rounded.onnx")
                    write_floats(kept)
                    shutil.move(lowered, runnable)
                write_floats(kept, rounded=False)
            else:
                quantizer.write(lowered, kept)
        shutil.move(lowered, path)
    finally:
        lowered.unlink(missing_ok=True)
    return LoweredGraph([f"{node.op_type} {node.name}" for node in candidates if node.name in kept], runnable)


def quantization_method(precision: Precision, target: Runtime) -> Quantization:
    """How INT8, INT8_DYNAMIC or FP8 is done for a target."""
    if precision is Precision.FP8:
        return Quantization.TENSORRT_FP8
    if precision is Precision.INT8_DYNAMIC:
        return Quantization.DYNAMIC
    return Quantization.TENSORRT_INT8 if target is Runtime.TENSORRT else Quantization.STATIC


def _worst_nodes(
    graph: GraphSpec, path: Path, lowered: Path, quantizer: Quantizer, passes: Callable[[], bool], *, exact: bool
) -> list[str] | None:
    """The fewest nodes that have to stay in float32, the worst first; None when not even all are enough."""
    names = [node.name for node in quantizer.nodes]

    def holds(keep: Sequence[str]) -> bool:
        quantizer.write(lowered, keep)
        return passes()

    if holds([]):
        return []
    if not holds(names):
        return None
    most = max(quantizer.calibration, key=lambda batch: max(map(len, batch.values())))
    batch = split_rows(most, SENSITIVITY_ROWS)[0]
    expected = run_onnx(path, batch, list(graph.outputs), exact=exact)
    errors = {}
    for name in names:
        quantizer.write(lowered, [other for other in names if other != name])
        found = run_onnx(lowered, batch, list(graph.outputs), exact=exact)
        errors[name] = sum(
            float(np.sum((found[output] - expected[output]) ** 2) / np.sum(expected[output] ** 2)) for output in found
        )
    ranked = sorted(names, key=lambda name: -errors[name])
    enough = bisect.bisect_left(range(1, len(ranked)), True, key=lambda count: holds(ranked[:count])) + 1
    return ranked[:enough]


def _fewest_nodes(candidates: Sequence[onnx.NodeProto], passes: Callable[[list[str]], bool]) -> list[str] | None:
    """Operator types first, then nodes of these types: few questions for what is mostly "every soft-max"."""

    def of_types(types: Sequence[str]) -> list[str]:
        return [node.name for node in candidates if node.op_type in types]

    types = fewest_kept(sorted({node.op_type for node in candidates}), lambda types: passes(of_types(types)))
    if not types:
        return None if types is None else []
    return fewest_kept(of_types(types), passes)
