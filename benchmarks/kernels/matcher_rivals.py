"""The padded matcher through ONNX Runtime on CUDA and through TensorRT, as rivals of kernel 2.

Both get a graph of fixed shapes, which suits them best, in float16, and tensors that lie on the GPU already. What is
not installed raises, and becomes a row "not measured" with that reason: the suite itself needs torch and triton only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernels.matcher_weights import UnitWeights

NAMES = ("images", "labels", "image_present", "label_present")
Padded = tuple[Tensor, Tensor, Tensor, Tensor]
PaddedMatcher = Callable[[list[UnitWeights], Tensor, Tensor, Tensor, Tensor], Tensor]
Calls = list[Callable[[], Tensor]]


class Bound(nn.Module):
    """A padded matcher with its weights, as the exporter wants it."""

    def __init__(self, matcher: PaddedMatcher, units: list[UnitWeights]) -> None:
        super().__init__()
        self.matcher = matcher
        self.units = units

    def forward(self, images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor) -> Tensor:
        """Tokens [P, n, d] and [P, m, d], which are there [P, n] and [P, m] bool -> logits [P, n, m]."""
        return self.matcher(self.units, images, labels, image_present, label_present)


def export_padded(matcher: PaddedMatcher, units: list[UnitWeights], inputs: Padded) -> bytes:
    """The matcher as an ONNX graph of the inputs' shapes and type.

    Raises:
        ModuleNotFoundError: the packages onnx or onnxscript are missing.
    """
    import onnxscript  # noqa: F401  # the exporter's own message names it less clearly

    program = torch.onnx.export(
        Bound(matcher, units).eval(),
        inputs,
        dynamo=True,
        input_names=list(NAMES),
        output_names=["logits"],
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def onnx_runtime(
    matcher: PaddedMatcher, units: list[UnitWeights], sets: Sequence[Padded], *, cuda_graph: bool
) -> Calls:
    """Calls of ONNX Runtime's CUDA provider on torch's stream, one a set of inputs.

    `cuda_graph`: replayed from the graph that ONNX Runtime captures itself, in a session for every set, since it keeps
    the addresses.

    Raises:
        ModuleNotFoundError, RuntimeError: ONNX Runtime is missing, or has no CUDA provider.
    """
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider")
    graph = export_padded(matcher, units, sets[0])
    options = {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    if cuda_graph:
        options["enable_cuda_graph"] = "1"

    def session() -> onnxruntime.InferenceSession:
        made = onnxruntime.InferenceSession(graph, providers=[("CUDAExecutionProvider", options)])
        if "CUDAExecutionProvider" not in made.get_providers():
            raise RuntimeError("ONNX Runtime could not load its CUDA provider")
        return made

    def call(made: onnxruntime.InferenceSession, inputs: Padded) -> Callable[[], Tensor]:
        logits = _logits_like(inputs)
        binding = made.io_binding()
        for name, tensor in zip(NAMES, inputs, strict=True):
            dtype = {torch.bool: np.bool_, torch.float16: np.float16, torch.float32: np.float32}[tensor.dtype]
            binding.bind_input(name, "cuda", 0, dtype, tuple(tensor.shape), tensor.data_ptr())
        dtype = np.float16 if logits.dtype == torch.float16 else np.float32
        binding.bind_output("logits", "cuda", 0, dtype, tuple(logits.shape), logits.data_ptr())

        def run() -> Tensor:
            made.run_with_iobinding(binding)
            return logits

        return run

    shared = None if cuda_graph else session()
    return [call(shared or session(), inputs) for inputs in sets]


def tensorrt(matcher: PaddedMatcher, units: list[UnitWeights], sets: Sequence[Padded]) -> Calls:
    """Calls of a strongly typed TensorRT engine on torch's stream, one a set of inputs.

    Raises:
        ModuleNotFoundError, RuntimeError: TensorRT is missing, or cannot parse or build the graph.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matcher.onnx"
        path.write_bytes(export_padded(matcher, units, sets[0]))
        if not parser.parse_from_file(str(path)):
            raise RuntimeError(f"TensorRT cannot parse the graph: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("TensorRT cannot build the graph")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)

    def call(inputs: Padded) -> Callable[[], Tensor]:
        context, logits = engine.create_execution_context(), _logits_like(inputs)
        for name, tensor in zip((*NAMES, "logits"), (*inputs, logits), strict=True):
            context.set_tensor_address(name, tensor.data_ptr())

        def run() -> Tensor:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError("TensorRT cannot run the engine")
            return logits

        return run

    return [call(inputs) for inputs in sets]


def _logits_like(inputs: Padded) -> Tensor:
    """Room for the logits [P, n, m] of a set of inputs."""
    images, labels, _, _ = inputs
    return images.new_empty(len(images), images.shape[1], labels.shape[1])
