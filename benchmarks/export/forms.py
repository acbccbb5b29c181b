"""The forms that an export can give a graph.

Forms for a GPU are run here too, for their answers and not for their speed: graphs that round as float16 or bfloat16
do, and TensorRT's quantise/dequantise graphs without fusion.  What a GPU adds is the order of its sums.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from export.chain import Chain
from export.onnx_graphs import GraphSpec, export_onnx
from export.parity import ParityLimits
from export.precision import LIMITS, LoweredGraph, Precision, Runtime, lower_graph

PACKAGES = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "numpy")


@dataclass(frozen=True)
class Form:
    """One way to lower a graph; `limits` other than the precision's own show what they would cost."""

    name: str
    precision: Precision
    runtime: Runtime
    limits: ParityLimits | None = None

    @property
    def exact(self) -> bool:
        """Whether its files are run as they stand, for want of what they were made for."""
        return self.runtime is not Runtime.CPU


FORMS = (
    Form("CPU fp32", Precision.FP32, Runtime.CPU),
    Form("CPU int8", Precision.INT8, Runtime.CPU),
    Form("CPU int8, held to 99.9 %", Precision.INT8, Runtime.CPU, replace(LIMITS[Precision.INT8], min_agreement=0.999)),
    Form("CPU int8-dynamic", Precision.INT8_DYNAMIC, Runtime.CPU),
    Form("CPU fp16", Precision.FP16, Runtime.CPU),
    Form("GPU fp16", Precision.FP16, Runtime.GPU),
    Form("GPU bf16", Precision.BF16, Runtime.GPU),
    Form("TensorRT int8", Precision.INT8, Runtime.TENSORRT),
    Form("TensorRT fp8", Precision.FP8, Runtime.TENSORRT),
)


QUICK = ("CPU fp32", "CPU int8", "CPU int8-dynamic", "GPU fp16", "TensorRT int8")


@contextmanager
def lowered_forms(
    graph: GraphSpec, chain: Chain, calibration: Sequence[Mapping[str, Tensor]], *, quick: bool
) -> Iterator[Iterator[tuple[Form, LoweredGraph, Path]]]:
    """Forms of a graph that pass the gate, one after another: what was kept, and its file as it is served.

    Those of `FORMS`, or of `QUICK`: of every way to lower one, without the strictest limit, which is a long search.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = folder / "exported.onnx"
        export_onnx(graph, exported)

        def forms() -> Iterator[tuple[Form, LoweredGraph, Path]]:
            for number, form in enumerate(form for form in FORMS if not quick or form.name in QUICK):
                (folder / str(number)).mkdir()
                path = Path(shutil.copyfile(exported, folder / str(number) / "model.onnx"))
                lowered = lower_graph(graph, path, form.precision, form.runtime, chain, calibration, form.limits)
                yield form, lowered, path

        yield forms()
