"""Lower precisions: what has to stay in float32 is found, named and enough; what cannot be done is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.bisection import fewest_kept
from export.chain import Chain
from export.float_types import BFLOAT16, FLOAT16, lower_floats
from export.onnx_graphs import ExportError, GraphSpec, export_onnx, file_bytes, save_onnx
from export.parity import ParityError, ParityLimits, failures, run_onnx
from export.precision import ALLOWED, LIMITS, Precision, Runtime, choose_precision, lower_graph
from export.quantization import Quantization, Quantizer, quantizable_nodes

README = Path(__file__).resolve().parents[2] / "README.md"


class Encoder(nn.Module):
    """Convolution and matrix product; `overflow` squares a number that float16 cannot hold."""

    def __init__(self, overflow: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = nn.Linear(8, 64)
        self.overflow = overflow

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = torch.relu(self.convolution(pixel_values)).mean((2, 3))
        if self.overflow:
            features = torch.sqrt((features * 10_000) ** 2 + 1e-3)
        return nn.functional.normalize(self.layer(features), dim=-1)


class RaggedEncoder(Encoder):
    """The same on photos that come one after the other, some of them asked for."""

    def forward(self, pixel_values: Tensor, wanted: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(pixel_values.view(-1, 3, 8, 8))[wanted]


@pytest.fixture(scope="module")
def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(19, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


def exported(folder: Path, overflow: bool = False) -> tuple[GraphSpec, Path]:
    graph = GraphSpec("encoder", Encoder(overflow), {"pixel_values": torch.zeros(2, 3, 8, 8)}, ["embeds"])
    export_onnx(graph, folder / "model.onnx")
    return graph, folder / "model.onnx"


@pytest.mark.parametrize("needed", [set(), {3}, {0, 9}, {2, 3, 5, 7}, set(range(10))])
def test_exactly_the_parts_that_are_needed_are_kept(needed: set[int]) -> None:
    assert fewest_kept(range(10), lambda kept: needed <= set(kept)) == sorted(needed)


def test_nothing_is_kept_where_keeping_everything_is_not_enough() -> None:
    assert fewest_kept(range(4), lambda kept: False) is None


def test_float16_keeps_its_edges_and_halves_its_weights(pixels: dict[str, Tensor], tmp_path: Path) -> None:
    graph, path = exported(tmp_path)
    before = file_bytes(path)
    lowered = lower_graph(graph, path, Precision.FP16, Runtime.GPU, Chain([graph], [pixels]), [pixels])
    assert lowered.kept == []
    model = onnx.load(path)
    edges = [value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]]
    assert edges == [onnx.TensorProto.FLOAT] * 2
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert file_bytes(path) < before
    difference = Chain([graph], [pixels]).compare(graph, lowered.runnable, exact=True)[0].difference
    assert difference is not None
    assert 1e-6 < difference < 5e-3, "half precision was really computed in"


def test_the_node_that_overflows_is_found_and_left_in_float32(pixels: dict[str, Tensor], tmp_path: Path) -> None:
    graph, path = exported(tmp_path, overflow=True)
    everything = onnx.load(path)
    save_onnx(lower_floats(everything, FLOAT16, set(), rounded=True), tmp_path / "all.onnx")
    assert not np.isfinite(run_onnx(tmp_path / "all.onnx", pixels, ["embeds"], exact=True)["embeds"]).all()
    lowered = lower_graph(graph, path, Precision.FP16, Runtime.GPU, Chain([graph], [pixels]), [pixels])
    assert lowered.kept
    assert not any(node.startswith(("Conv", "Gemm")) for node in lowered.kept), "the heavy nodes are in float16"
    comparison = Chain([graph], [pixels]).compare(graph, lowered.runnable, exact=True)[0]
    assert comparison.failure(LIMITS[Precision.FP16]) == ""


def test_the_twin_of_a_bfloat16_graph_rounds_as_bfloat16_does(tmp_path: Path) -> None:
    x, w = np.array([[1.001, 3.14159, 100.7]], np.float32), np.array([[1.003], [0.1], [7.77]], np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [shape("x", 1, ["n", 3])],
        [shape("y", 1, ["n", 1])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    onnx.save(lower_floats(model, BFLOAT16, set(), rounded=True), tmp_path / "twin.onnx")
    found = run_onnx(tmp_path / "twin.onnx", {"x": torch.from_numpy(x)}, ["y"])["y"]
    a, b = torch.from_numpy(x).bfloat16().float(), torch.from_numpy(w).bfloat16().float()
    np.testing.assert_array_equal(found, (a @ b).bfloat16().float().numpy())
    types = {tensor.data_type for tensor in lower_floats(model, BFLOAT16, set()).graph.initializer}
    assert types == {BFLOAT16}


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_DYNAMIC])
def test_int8_holds_its_limits_and_static_ranges_do_not_see_the_neighbours(
    pixels: dict[str, Tensor], tmp_path: Path, precision: Precision
) -> None:
    graph, path = exported(tmp_path)
    lower_graph(graph, path, precision, Runtime.CPU, Chain([graph], [pixels]), [pixels])
    integers = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in integers
    assert Chain([graph], [pixels]).compare(graph, path)[0].failure(LIMITS[precision]) == ""
    if precision is Precision.INT8:
        together = run_onnx(path, pixels, ["embeds"])["embeds"]
        alone = run_onnx(path, {"pixel_values": pixels["pixel_values"][3:4]}, ["embeds"])["embeds"]
        np.testing.assert_allclose(together[3:4], alone, atol=1e-5)


def test_limits_that_no_choice_reaches_leave_the_file_as_it_was(pixels: dict[str, Tensor], tmp_path: Path) -> None:
    graph, path = exported(tmp_path)
    before = path.read_bytes()
    impossible = ParityLimits(min_cosine=1.1)
    with pytest.raises(ParityError, match="encoder: no choice of float32 nodes makes fp16 pass: embeds: cosine is"):
        lower_graph(graph, path, Precision.FP16, Runtime.GPU, Chain([graph], [pixels]), [pixels], impossible)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_static_quantisation_without_calibration_data_is_refused(tmp_path: Path) -> None:
    _, path = exported(tmp_path)
    with pytest.raises(ExportError, match="was given no calibration data"):
        Quantizer(path, Quantization.STATIC, [], tmp_path)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_nodes_that_err_most_stay_in_float32_until_the_limits_hold(
    pixels: dict[str, Tensor], tmp_path: Path, ragged: bool
) -> None:
    graph, path = exported(tmp_path)
    if ragged:
        examples = {"pixel_values": torch.zeros(2 * 192), "wanted": torch.tensor([1, 0, 1])}
        axes = {"pixel_values": {0: "pixels"}, "wanted": {0: "rows"}}
        graph = GraphSpec("encoder", RaggedEncoder(overflow=False), examples, ["embeds"], dynamic_axes=axes)
        pixels = {"pixel_values": pixels["pixel_values"].flatten(), "wanted": torch.arange(18)}
    with torch.no_grad():
        # One channel drowns the others, and counts no more than they: the same function, hard to tell in 8 bits.
        graph.module.get_parameter("convolution.weight")[0] *= 300
        graph.module.get_parameter("convolution.bias")[0] *= 300
        graph.module.get_parameter("layer.weight")[:, 0] /= 300
    export_onnx(graph, path)
    chain = Chain([graph], [pixels])
    strict = ParityLimits(min_cosine=0.9999, max_difference=0.01)
    shutil.copyfile(path, tmp_path / "whole.onnx")
    whole = Quantizer(tmp_path / "whole.onnx", Quantization.STATIC, [pixels], tmp_path)
    whole.write(tmp_path / "int8.onnx")
    assert failures(chain.compare(graph, tmp_path / "int8.onnx"), strict), "needs something to be kept"
    kept = lower_graph(graph, path, Precision.INT8, Runtime.CPU, chain, [pixels], strict).kept
    assert 0 < len(kept) < len(whole.nodes)
    assert failures(chain.compare(graph, path), strict) == []


def test_integers_run_between_convolutions_and_nowhere_else() -> None:
    def node(operator: str, *names: str) -> onnx.NodeProto:
        return onnx.helper.make_node(operator, names[:-1], names[-1:], name=f"{operator} {names[-1]}")

    nodes = [
        node("Conv", "x", "w", "a"),
        node("Relu", "a", "b"),
        node("Add", "b", "x", "c"),
        node("Sigmoid", "c", "d"),
        node("Add", "d", "x", "e"),
        node("MatMul", "e", "v", "f"),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    static = [node.name for node in quantizable_nodes(model, Quantization.STATIC)]
    assert static == ["Conv a", "Relu b", "Add c", "MatMul f"]
    assert [node.name for node in quantizable_nodes(model, Quantization.TENSORRT_INT8)] == ["Conv a", "MatMul f"]
    assert [node.name for node in quantizable_nodes(model, Quantization.DYNAMIC)] == ["MatMul f"]


def test_a_target_refuses_precisions_that_it_cannot_run() -> None:
    assert choose_precision(Runtime.CPU, None) is Precision.FP32
    assert choose_precision(Runtime.TENSORRT, None) is Precision.FP16
    with pytest.raises(ExportError, match="target cpu runs fp32, int8, int8-dynamic, fp16, not fp8"):
        choose_precision(Runtime.CPU, Precision.FP8)


def test_weights_too_large_for_one_file_go_beside_it(
    pixels: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.onnx_graphs.LARGEST_SINGLE_FILE", 100)
    graph, path = exported(tmp_path)
    assert path.with_name("model.onnx.data").is_file()
    assert Chain([graph], [pixels]).compare(graph, path)[0].failure(ParityLimits()) == ""


def test_the_readme_states_limits_and_targets_as_they_are() -> None:
    table = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.e-]+) \| ([\d.]+) % \| ([\w, ]+) \|$", README.read_text(), re.M
    )
    stated = {}
    for name, cosine, difference, share, targets in table:
        limits = ParityLimits(float(cosine), float(difference), round(float(share) / 100, 6))
        stated[Precision(name)] = (limits, set(targets.split(", ")))
    assert stated == {
        precision: (limits, {runtime.value for runtime, allowed in ALLOWED.items() if precision in allowed})
        for precision, limits in LIMITS.items()
    }
