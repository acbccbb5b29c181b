"""The parity gate notices what differs, names it, and says nothing of what does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.chain import Chain
from export.onnx_graphs import GraphSpec, export_onnx
from export.parity import OutputParity, ParityError, ParityLimits, compare, failures, run_onnx, worst
from repository.check import check_versions
from repository.configs import RepositoryError


class Scorer(nn.Module):
    """A small network with a continuous output and class numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 9)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.layer(features)
        return scores, scores.topk(3).indices.to(torch.int32)


@pytest.fixture
def graph() -> GraphSpec:
    return GraphSpec("scorer", Scorer(), {"features": torch.zeros(2, 6)}, ["scores", "ids"])


@pytest.fixture
def features() -> dict[str, Tensor]:
    return {"features": torch.randn(23, 6, generator=torch.Generator().manual_seed(1))}


def test_a_faithful_export_passes_with_a_dynamic_batch(
    graph: GraphSpec, features: dict[str, Tensor], tmp_path: Path
) -> None:
    export_onnx(graph, tmp_path / "model.onnx")
    scores, ids = Chain([graph], [features]).compare(graph, tmp_path / "model.onnx")
    assert failures([scores, ids], ParityLimits()) == []
    assert scores.rows == 23
    assert scores.difference is not None
    assert scores.difference < 1e-5
    assert ids.agreement == 1.0
    one = run_onnx(tmp_path / "model.onnx", {"features": features["features"][:1]}, ["scores"])
    assert one["scores"].shape == (1, 9)


def test_a_changed_weight_is_noticed_and_the_output_named(
    graph: GraphSpec, features: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(graph, path)
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [9])
    values = numpy_helper.to_array(bias).copy()
    values[4] += 0.01
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)
    [sentence, *_] = failures(Chain([graph], [features]).compare(graph, path), ParityLimits())
    assert sentence.startswith("scores: a value differs by 1.00e-02")


def test_nan_never_passes() -> None:
    nan = compare("scores", np.ones((3, 4), np.float32), np.full((3, 4), np.nan, np.float32))
    assert nan.failure(ParityLimits())


def test_a_single_differing_row_is_enough() -> None:
    expected = np.eye(4, dtype=np.float32)
    found = expected.copy()
    found[2] = [0, 1, 0, 0]
    assert "cosine is 0.0" in compare("embeds", expected, found).failure(ParityLimits(max_difference=10))


def test_the_order_of_later_classes_does_not_matter_but_the_first_does() -> None:
    expected = np.array([[1, 2, 3]] * 1000, np.int32)
    swapped = expected[:, [0, 2, 1]]
    assert compare("ids", expected, swapped).failure(ParityLimits()) == ""
    swapped = expected.copy()
    swapped[:2, 0] = 5
    assert "0.9980" in compare("ids", expected, swapped).failure(ParityLimits())
    assert compare("ids", expected, swapped) == OutputParity("ids", 1000, decisions=1000, agreement=0.998)


class Chooser(nn.Module):
    """Turns scores into the number of the largest and sharpened probabilities."""

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores.argmax(-1, keepdim=True).to(torch.int32), (20 * scores).softmax(-1)


def test_a_file_is_judged_by_what_the_system_answers_behind_it(
    graph: GraphSpec, features: dict[str, Tensor], tmp_path: Path
) -> None:
    chooser = GraphSpec("chooser", Chooser(), {"scores": torch.zeros(2, 9)}, ["choice", "probability"])
    export_onnx(graph, tmp_path / "model.onnx")
    chain = Chain([graph, chooser], [features])
    assert [output.output for output in chain.compare(graph, tmp_path / "model.onnx")] == [
        "scores",
        "ids",
        "choice",
        "probability",
    ]
    model = onnx.load(tmp_path / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [9])
    values = numpy_helper.to_array(bias).copy()
    values[4] += 0.3
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "other.onnx")
    by_name = {output.output: output for output in chain.compare(graph, tmp_path / "other.onnx")}
    with torch.no_grad():
        scores = graph.module(features["features"])[0]
    moved = scores + torch.tensor([0.3 * (place == 4) for place in range(9)])
    share = float((moved.argmax(1) == scores.argmax(1)).float().mean())
    assert share < 1
    assert by_name["choice"].agreement == pytest.approx(share)
    chain.take(graph, tmp_path / "other.onnx")
    export_onnx(chooser, tmp_path / "chooser.onnx")
    found = chain.compare(chooser, tmp_path / "chooser.onnx")
    assert found[0].agreement == pytest.approx(share), "the deviation of files taken before counts"


def test_answers_are_counted_over_all_batches() -> None:
    expected = np.eye(4, dtype=np.float32)[None]
    found = expected.copy()
    found[0, 3] = [1, 0, 0, 0]
    wrong, right = (compare("p", expected, array, choice=True) for array in (found, expected))
    assert (wrong.decisions, wrong.agreement) == (4, 0.75)
    [pooled] = worst([[wrong], [right], [right]])
    assert (pooled.rows, pooled.decisions, pooled.agreement) == (3, 12, pytest.approx(11 / 12))


def test_another_shape_is_refused() -> None:
    with pytest.raises(ParityError, match=r"float32 \(2, 3\), the file float32 \(2, 4\)"):
        compare("scores", np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(("field", "value", "message"), [("opset", 23, "opset 23"), ("ir", 11, "IR version 11")])
def test_a_graph_too_new_for_tritons_onnx_runtime_is_refused(
    graph: GraphSpec, tmp_path: Path, field: str, value: int, message: str
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(graph, path)
    model = onnx.load(path)
    if field == "opset":
        model.opset_import[0].version = value
    else:
        model.ir_version = value
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match=message):
        check_versions(path)
