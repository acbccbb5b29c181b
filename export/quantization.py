"""8-bit ONNX graphs: for ONNX Runtime on a CPU, and quantise/dequantise graphs for TensorRT.

On a CPU, convolutions gain from static quantisation (integers from end to end, ranges measured on calibration data) and
matrix products from dynamic quantisation (ranges measured on every input); `suggested_method` picks by what a graph is
made of.  Activations are unsigned and weights signed: what VNNI and AMX multiply; signed activations take ONNX Runtime's
slow path (ten times slower in a convolution).  TensorRT wants both signed and symmetric, or both float8.
All of it is onnxruntime.quantization; here are the choices.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from .onnx_graphs import ExportError

CALIBRATION_BATCH = 8
MATRIX_PRODUCTS = ("MatMul", "Gemm")
# Everything between two convolutions, so that integers need not become floats in between.
CONVOLUTIONAL = ("Conv", "Add", "Relu", "MaxPool", "Gemm", "MatMul")
FLOAT8_OPSET = 19


class Quantization(StrEnum):
    """How a graph is brought to 8 bits."""

    DYNAMIC = "int8-dynamic"
    STATIC = "int8-static"
    TENSORRT_INT8 = "int8-tensorrt"
    TENSORRT_FP8 = "fp8-tensorrt"


def suggested_method(path: Path) -> Quantization:
    """What pays on a CPU: STATIC for a graph of convolutions, DYNAMIC for one of matrix products."""
    operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    products = sum(operators.count(name) for name in MATRIX_PRODUCTS)
    return Quantization.STATIC if operators.count("Conv") > products else Quantization.DYNAMIC


def quantizable_nodes(path: Path, method: Quantization) -> list[str]:
    """Names of the nodes that `quantize` would quantise when nothing is kept."""
    operators = CONVOLUTIONAL if method is Quantization.STATIC else (*MATRIX_PRODUCTS, "Conv")
    if method is Quantization.DYNAMIC:
        operators = MATRIX_PRODUCTS
    graph = onnx.load(path, load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type in operators]


def quantize(
    source: Path,
    target: Path,
    method: Quantization,
    calibration: Mapping[str, Tensor],
    keep: Collection[str] = (),
) -> None:
    """Writes the graph at `source` with 8-bit weights and activations.

    Args:
        source: a float32 ONNX file.
        target: where the other goes.
        method: see `Quantization`.
        calibration: real inputs [N, …] by name; not looked at by DYNAMIC.
        keep: names of nodes that stay in float32.

    Raises:
        ExportError: there is no calibration data and the method needs it.
    """
    rows = min((len(tensor) for tensor in calibration.values()), default=0)
    if method is not Quantization.DYNAMIC and not rows:
        raise ExportError(
            f"{source.name}: {method} measures the range of every activation and was given no calibration data; a bundle "
            "carries some in samples.parquet, --feed gives more"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        # Folds constants and batch norms and infers shapes; the symbolic inference fails on the exporter's dimensions.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        del model.graph.value_info[:]  # the quantiser transposes weights and is confused by their former shapes
        if method is Quantization.TENSORRT_FP8:
            model = onnx.version_converter.convert_version(model, FLOAT8_OPSET)
        onnx.save(model, prepared)
        excluded = list(keep)
        if method is Quantization.DYNAMIC:
            quantize_dynamic(
                prepared,
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(MATRIX_PRODUCTS),
                nodes_to_exclude=excluded,
            )
            return
        reader = _Calibration(calibration)
        if method is Quantization.STATIC:
            quantize_static(
                prepared,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(CONVOLUTIONAL),
                nodes_to_exclude=excluded,
            )
            return
        float8 = method is Quantization.TENSORRT_FP8
        quantize_static(
            prepared,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=not float8,
            activation_type=QuantType.QFLOAT8E4M3FN if float8 else QuantType.QInt8,
            weight_type=QuantType.QFLOAT8E4M3FN if float8 else QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"] if float8 else [*MATRIX_PRODUCTS, "Conv"],
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.Distribution if float8 else CalibrationMethod.MinMax,
            # TensorRT keeps biases in float and wants both sides of zero alike.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )


class _Calibration(CalibrationDataReader):
    """Real inputs in batches, once."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        rows = min(len(tensor) for tensor in inputs.values())
        self._batches: Iterator[dict[str, np.ndarray]] = (
            {name: tensor[start : start + CALIBRATION_BATCH].numpy() for name, tensor in inputs.items()}
            for start in range(0, rows, CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends to the root logger what was done already."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
