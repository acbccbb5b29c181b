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
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Any

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
BETWEEN_CONVOLUTIONS = ("Add", "Relu", "MaxPool")
FLOAT8_OPSET = 19


class Quantization(StrEnum):
    """How a graph is brought to 8 bits."""

    DYNAMIC = "int8-dynamic"
    STATIC = "int8-static"
    TENSORRT_INT8 = "int8-tensorrt"
    TENSORRT_FP8 = "fp8-tensorrt"


class Quantizer:
    """A float32 graph, prepared and its ranges measured once, to be written in 8 bits with any nodes left in float32.

    Args:
        source: the ONNX file.
        method: see `Quantization`.
        calibration: batches of real inputs [N, …] by name; not looked at by DYNAMIC.
        folder: for files in between; must outlive the quantiser.

    Raises:
        ExportError: there is no calibration data and the method needs it.
    """

    def __init__(
        self, source: Path, method: Quantization, calibration: Sequence[Mapping[str, Tensor]], folder: Path
    ) -> None:
        if method is not Quantization.DYNAMIC and not any(
            len(tensor) for batch in calibration for tensor in batch.values()
        ):
            raise ExportError(
                f"{source.name}: {method} measures the range of every activation and was given no "
                "calibration data; a bundle carries some in samples.parquet, --feed gives more"
            )
        self.method = method
        self.calibration = calibration
        self._prepared, self._ranges = folder / "prepared.onnx", folder / "ranges.json"
        with _quiet():
            # Folds constants and batch norms and infers shapes; symbolic inference fails on the exporter's dimensions.
            quant_pre_process(str(source), str(self._prepared), skip_symbolic_shape=True)
        model = onnx.load(self._prepared)
        del model.graph.value_info[:]  # the quantiser transposes weights and is confused by their former shapes
        if method is Quantization.TENSORRT_FP8:
            model = onnx.version_converter.convert_version(model, FLOAT8_OPSET)
        onnx.save(model, self._prepared)
        self.nodes = quantizable_nodes(model, method)
        self._operators = sorted({node.op_type for node in self.nodes})
        chosen = {node.name for node in self.nodes}
        self._others = [node.name for node in model.graph.node if node.name not in chosen]

    def write(self, target: Path, keep: Collection[str] = ()) -> None:
        """Writes the graph to `target`, the nodes named in `keep` in float32."""
        excluded = [*self._others, *keep]
        with _quiet():
            if self.method is Quantization.DYNAMIC:
                quantize_dynamic(
                    self._prepared,
                    target,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    # A Gemm becomes a MatMul, named after it, and an Add before anything is quantised.
                    op_types_to_quantize=list(MATRIX_PRODUCTS),
                    nodes_to_exclude=[*excluded, *(f"{name}_MatMul" for name in keep)],
                )
                return
            float8 = self.method is Quantization.TENSORRT_FP8
            activations, weights = {
                Quantization.STATIC: (QuantType.QUInt8, QuantType.QInt8),
                Quantization.TENSORRT_INT8: (QuantType.QInt8, QuantType.QInt8),
                Quantization.TENSORRT_FP8: (QuantType.QFLOAT8E4M3FN, QuantType.QFLOAT8E4M3FN),
            }[self.method]
            # A batch at a time: a calibrator holds every activation of what it is given at once.
            options: dict[str, Any] = {"CalibStridedMinMax": 1}
            if self.method is Quantization.STATIC:
                # What comes out of a matrix product is summed in 32 bits: as a float it loses nothing more.
                options["OpTypesToExcludeOutputQuantization"] = list(MATRIX_PRODUCTS)
            else:  # TensorRT keeps biases in float and wants both sides of zero alike
                options |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
            quantize_static(
                self._prepared,
                target,
                _Calibration(self.calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=not float8,
                activation_type=activations,
                weight_type=weights,
                op_types_to_quantize=self._operators,
                nodes_to_exclude=excluded,
                # Not the largest value ever seen: one outlier in 100,000 would cost all others their last bit.
                calibrate_method=CalibrationMethod.Distribution if float8 else CalibrationMethod.Percentile,
                extra_options=options,
                calibration_cache_path=self._ranges,
            )


def quantizable_nodes(model: onnx.ModelProto, method: Quantization) -> list[onnx.NodeProto]:
    """The nodes that are quantised when none is kept, in the graph's order.

    Matrix products; convolutions unless ranges are measured on every batch or a GPU's float8 has none; and on a CPU
    what stands between convolutions, so that integers need not become floats in between.
    """
    float_only = method in (Quantization.DYNAMIC, Quantization.TENSORRT_FP8)
    operators = MATRIX_PRODUCTS if float_only else (*MATRIX_PRODUCTS, "Conv")
    convolved: set[str] = set()  # tensors that come from convolutions, through what may stand between them
    nodes = []
    for node in model.graph.node:
        between = method is Quantization.STATIC and node.op_type in BETWEEN_CONVOLUTIONS and node.input[0] in convolved
        if node.op_type == "Conv" or between:
            convolved |= set(node.output)
        if node.op_type in operators or between:
            nodes.append(node)
    return nodes


class _Calibration(CalibrationDataReader):
    """Real inputs in small batches, in the ranges of batches that the calibrator asks for."""

    def __init__(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._batches = [
            {name: tensor.numpy() for name, tensor in part.items()}
            for batch in batches
            for part in split_rows(batch, CALIBRATION_BATCH)
        ]
        self._rest = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """From now on, batches `start_index` to `end_index`, the latter not included."""
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


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
