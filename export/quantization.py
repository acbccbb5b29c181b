"""8-bit ONNX graphs: for ONNX Runtime on a CPU, and quantise/dequantise graphs for TensorRT.

Static quantisation measures the range of every activation once, on calibration data, so that an answer stays a function
of its own row.  Dynamic quantisation measures it on every batch: closer to float32 where activations have outliers, and
somewhat faster for transformers, but the rows of a batch then share a range and move each other's last digits.
Activations are unsigned and weights signed: what VNNI and AMX multiply; signed activations take ONNX Runtime's slow
path (measured: ten times slower in a convolution).  TensorRT wants both signed and symmetric, or both float8.
All of it is onnxruntime.quantization; here are the choices.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
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
from .parity import split_rows

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


def quantized_operators(path: Path, method: Quantization) -> tuple[str, ...]:
    """The operators that `quantize` would quantise in the graph at `path`."""
    if method in (Quantization.DYNAMIC, Quantization.TENSORRT_FP8):
        return MATRIX_PRODUCTS
    operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    products = sum(operators.count(name) for name in MATRIX_PRODUCTS)
    if method is Quantization.STATIC and operators.count("Conv") > products:
        return CONVOLUTIONAL
    return (*MATRIX_PRODUCTS, "Conv")


def quantizable_nodes(path: Path, method: Quantization) -> list[str]:
    """Names of the nodes that `quantize` would quantise when nothing is kept, in the graph's order."""
    operators = quantized_operators(path, method)
    graph = onnx.load(path, load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type in operators]


def quantize(
    source: Path,
    target: Path,
    method: Quantization,
    calibration: Sequence[Mapping[str, Tensor]],
    keep: Collection[str] = (),
) -> None:
    """Writes the graph at `source` with 8-bit weights and activations.

    Args:
        source: a float32 ONNX file.
        target: where the other goes.
        method: see `Quantization`.
        calibration: batches of real inputs [N, …] by name; not looked at by DYNAMIC.
        keep: names of nodes that stay in float32.

    Raises:
        ExportError: there is no calibration data and the method needs it.
    """
    if method is not Quantization.DYNAMIC and not any(
        len(tensor) for batch in calibration for tensor in batch.values()
    ):
        raise ExportError(
            f"{source.name}: {method} measures the range of every activation and was given no "
            "calibration data; a bundle carries some in samples.parquet, --feed gives more"
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
        operators = list(quantized_operators(source, method))
        if method is Quantization.DYNAMIC:
            quantize_dynamic(
                prepared,
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=operators,
                nodes_to_exclude=list(keep),
            )
            return
        float8 = method is Quantization.TENSORRT_FP8
        activations, weights = {
            Quantization.STATIC: (QuantType.QUInt8, QuantType.QInt8),
            Quantization.TENSORRT_INT8: (QuantType.QInt8, QuantType.QInt8),
            Quantization.TENSORRT_FP8: (QuantType.QFLOAT8E4M3FN, QuantType.QFLOAT8E4M3FN),
        }[method]
        # TensorRT keeps biases in float and wants both sides of zero alike.
        tensorrt_options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        quantize_static(
            prepared,
            target,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=not float8,
            activation_type=activations,
            weight_type=weights,
            op_types_to_quantize=operators,
            nodes_to_exclude=list(keep),
            calibrate_method=CalibrationMethod.Distribution if float8 else CalibrationMethod.MinMax,
            extra_options={} if method is Quantization.STATIC else tensorrt_options,
        )


class _Calibration(CalibrationDataReader):
    """Real inputs in small batches, once."""

    def __init__(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = (
            {name: tensor.numpy() for name, tensor in part.items()}
            for batch in batches
            for part in split_rows(batch, CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends to the root logger what was done already, and prints how far its calibration is."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
