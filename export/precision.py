"""The precision of an exported graph: what it must keep to, and how the nodes that need float32 are found.

A graph is lowered as a whole first.  Where parity is missed, delta debugging finds the operator types that have to stay
in float32, then which nodes of these types; the report lists them.  The figures are those of the file on real inputs,
as the parity gate measures them, so what this search accepts the gate accepts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import onnx
from torch import Tensor

from .bisection import fewest_kept
from .float_types import BFLOAT16, FLOAT16, lower_floats, lowerable_nodes
from .onnx_graphs import ExportError, GraphSpec, save_onnx
from .parity import OutputParity, ParityError, ParityLimits, compare_with_torch, failures, worst
from .quantization import Quantization, quantizable_nodes, quantize


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
    Precision.BF16: ParityLimits(min_cosine=0.99, max_difference=1.0, min_agreement=0.98),
    Precision.INT8: ParityLimits(min_cosine=0.99, max_difference=1.5, min_agreement=0.98),
    Precision.INT8_DYNAMIC: ParityLimits(min_cosine=0.99, max_difference=1.5, min_agreement=0.98),
    Precision.FP8: ParityLimits(min_cosine=0.98, max_difference=2.0, min_agreement=0.97),
}

ALLOWED: dict[Runtime, tuple[Precision, ...]] = {
    # ONNX Runtime on a CPU converts float16 back and forth (slower than float32) and has no bfloat16 kernels.
    Runtime.CPU: (Precision.FP32, Precision.INT8, Precision.INT8_DYNAMIC, Precision.FP16),
    Runtime.GPU: (Precision.FP16, Precision.FP32, Precision.BF16),
    Runtime.TENSORRT: (Precision.FP16, Precision.FP32, Precision.BF16, Precision.INT8, Precision.FP8),
}
"""Precisions of a target, its default first."""


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
    inputs: Sequence[Mapping[str, Tensor]],
    calibration: Sequence[Mapping[str, Tensor]],
    limits: ParityLimits | None = None,
) -> LoweredGraph:
    """Replaces the float32 file at `path` by one in a lower precision that passes parity.

    Args:
        graph: the model in PyTorch.
        path: its ONNX file in float32; left alone when an error is raised.
        precision: see `Precision`; FP32 changes nothing.
        target: what will run the file.
        inputs: batches of real inputs [N, …] by name that parity is measured on.
        calibration: batches of real inputs [M, …] by name that int8 and fp8 ranges are measured on.
        limits: what to keep to; the precision's own when None.

    Raises:
        ParityError: not even a graph with all of them in float32 keeps to the limits.
        ExportError: a graph cannot be lowered, or calibration data is missing.
    """
    if precision is Precision.FP32:
        return LoweredGraph([], path)
    limits = limits or LIMITS[precision]
    lowered = path.with_name("lowered.onnx")
    write, candidates = _writer(path, lowered, precision, target, calibration)
    found: list[OutputParity] = []

    def passes(keep: Sequence[str]) -> bool:
        write(keep, True)
        exact = target is not Runtime.CPU
        found[:] = worst([compare_with_torch(graph, lowered, batch, exact=exact) for batch in inputs])
        return not failures(found, limits)

    try:
        kept = _fewest_nodes(candidates, passes)
        if kept is None:
            raise ParityError(
                f"{graph.name}: no choice of float32 nodes makes {precision} pass: {'; '.join(failures(found, limits))}"
            )
        runnable = path
        if target is not Runtime.CPU and precision in (Precision.FP16, Precision.BF16):
            runnable = path.with_name("rounded.onnx")
            write(kept, True)
            shutil.move(lowered, runnable)
        write(kept, False)
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


def _writer(
    path: Path, lowered: Path, precision: Precision, target: Runtime, calibration: Sequence[Mapping[str, Tensor]]
) -> tuple[Callable[[Sequence[str], bool], None], list[onnx.NodeProto]]:
    """What writes the lowered graph with some nodes kept (to be run here, or to be served), and the nodes."""
    model = onnx.load(path)
    if precision in (Precision.FP16, Precision.BF16):
        element_type = FLOAT16 if precision is Precision.FP16 else BFLOAT16

        def write_floats(keep: Sequence[str], to_be_run_here: bool) -> None:
            # On a CPU there are no bfloat16 kernels, and float16 nodes run in float32 with the casts between them taken
            # out, where nothing overflows: the graph that rounds as a GPU does stands in for one that a GPU will run.
            rounded = to_be_run_here and target is not Runtime.CPU
            save_onnx(lower_floats(model, element_type, keep, rounded=rounded), lowered)

        return write_floats, lowerable_nodes(model, element_type)
    method = quantization_method(precision, target)
    names = set(quantizable_nodes(path, method))

    def write_integers(keep: Sequence[str], to_be_run_here: bool) -> None:
        quantize(path, lowered, method, calibration, keep)

    return write_integers, [node for node in model.graph.node if node.name in names]


def _fewest_nodes(candidates: Sequence[onnx.NodeProto], passes: Callable[[list[str]], bool]) -> list[str] | None:
    """Operator types first, then nodes of these types: few questions for what is mostly "every soft-max"."""

    def of_types(types: Sequence[str]) -> list[str]:
        return [node.name for node in candidates if node.op_type in types]

    types = fewest_kept(sorted({node.op_type for node in candidates}), lambda types: passes(of_types(types)))
    if not types:
        return None if types is None else []
    return fewest_kept(of_types(types), passes)
