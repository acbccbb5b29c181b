"""The graph that ONNX Runtime and TensorRT run as rivals of kernel 2 computes what the kernel is to compute."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from benchmarks.kernels import matcher_rivals
from benchmarks.kernels.matcher import Case, check, make_inputs, padded_matcher, random_weights


@pytest.mark.parametrize("case", [Case("equal", 3), Case("ragged", 5, ragged=True)], ids=lambda case: case.name)
def test_the_rivals_graph_matches_products(case: Case) -> None:
    torch.manual_seed(0)
    weights = random_weights("cpu")
    inputs = make_inputs(case, weights)[0]
    padded = (inputs.padded[0].float(), inputs.padded[1].float(), *inputs.padded[2:])
    graph = matcher_rivals.export_padded(padded_matcher, weights.units, padded)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(matcher_rivals.NAMES, padded, strict=True)}
    check(torch.from_numpy(session.run(None, feed)[0]), inputs)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_a_rival_that_is_not_there_says_so() -> None:
    with pytest.raises(RuntimeError, match="has no CUDAExecutionProvider"):
        matcher_rivals.onnx_runtime(padded_matcher, [], [], cuda_graph=False)
