"""A new version taken into service under traffic: no failed request, no mixed answer, and the way back stays open."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from serving.readiness import NotReady
from serving.roll_out import RollOutError, Versions, roll_out
from serving.server import RepositoryError, TritonServer
from tests.serving.conftest import connect, infer_input
from tests.serving.graphs import save_onnx

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }
ensemble_scheduling {
  step { model_name: "multiply" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }
  step { model_name: "add" model_version: -1 input_map { key: "x" value: "y" } output_map { key: "y" value: "z" } }
}
"""
STEP = "max_batch_size: 8 instance_group { kind: KIND_CPU count: 1 } dynamic_batching { }"


def add_version(repository: Path, version: int, factor: float, summand: float) -> None:
    """Version `version` of the ensemble `linear`: z = factor·x + summand, in two steps."""
    for name, operator, number in (("multiply", "Mul", factor), ("add", "Add", summand)):
        shape = (TensorProto.FLOAT, ["batch", 1])
        made = repository.with_name(f"made-{name}-{version}")
        path = save_onnx(
            made,
            name,
            [helper.make_node(operator, ["x", "number"], ["y"])],
            {"x": shape},
            {"y": shape},
            weights={"number": np.array([number], np.float32)},
        )
        folder = repository / name / str(version)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path.parent, folder)
        (folder.parent / "config.pbtxt").write_text(STEP)
    ensemble = repository / "linear"
    (ensemble / str(version)).mkdir(parents=True)
    (ensemble / "config.pbtxt").write_text(ENSEMBLE)
    (ensemble / "readiness.json").write_text(json.dumps([{"x": 1.0}]))
    (ensemble / str(version) / "release.json").write_text("{}")
    for folder in (ensemble, ensemble / str(version)):  # as the export leaves them
        (folder / "labels.txt").write_text(f"label of {version}\n")


class Traffic:
    """Requests from several threads for as long as the context lasts; keeps every answer and every error."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.answers: list[float] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(3)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with connect(self.server) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(ask(client))
                except InferenceServerException as error:
                    self.errors.append(str(error))


def ask(client: InferenceServerClient) -> float:
    x = infer_input("x", np.array([[5.0]], np.float32), "FP32")
    return float(client.infer("linear", [x], client_timeout=30).as_numpy("z")[0, 0])


def label(client: InferenceServerClient) -> str:
    """The label of z, by Triton's classification extension."""
    x = infer_input("x", np.array([[5.0]], np.float32), "FP32")
    answer = client.infer("linear", [x], outputs=[InferRequestedOutput("z", class_count=1)], client_timeout=30)
    return answer.as_numpy("z")[0, 0].decode().split(":")[-1]


def test_steps_of_another_version_are_not_served(tmp_path: Path) -> None:
    add_version(tmp_path, 1, factor=2, summand=1)
    add_version(tmp_path, 2, factor=3, summand=10)
    shutil.rmtree(tmp_path / "linear" / "2")  # as an export leaves it that was killed before its last step
    with pytest.raises(
        RepositoryError, match="linear is at version 1, its step multiply at 2; an export was interrupted"
    ):
        TritonServer(tmp_path, grpc_port=0, metrics_port=0).start()


def test_the_new_version_is_taken_under_traffic(start_server: Callable[..., TritonServer], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_version(repository, 1, factor=2, summand=1)
    server = start_server(repository, model_control=True)
    with connect(server) as client, Traffic(server) as traffic:
        with pytest.raises(RollOutError, match="version 1 is the newest and is served already"):
            roll_out(server.url, repository, "linear")
        add_version(repository, 2, factor=3, summand=10)
        assert roll_out(server.url, repository, "linear") == Versions(old=1, new=2)
        assert ask(client) == 25.0
        assert label(client) == "label of 2"
        assert not client.is_model_ready("multiply", "1"), "the old steps are unloaded"
        assert not client.is_model_ready("linear_candidate")

        # Another export may have removed the files of what is served.
        add_version(repository, 3, factor=3, summand=10)
        (repository / "add" / "2").rename(tmp_path / "removed")
        with pytest.raises(RollOutError, match="the files of version 2, which is served, are gone"):
            roll_out(server.url, repository, "linear")
        (tmp_path / "removed").rename(repository / "add" / "2")
        for name in ("linear", "add", "multiply"):
            shutil.rmtree(repository / name / "3")

        # A version whose answer is not finite: what was served goes on, and the next one is taken all the same.
        add_version(repository, 3, factor=4, summand=float("nan"))
        with pytest.raises(NotReady, match="output z is not finite"):
            roll_out(server.url, repository, "linear")
        assert ask(client) == 25.0
        for model in ("multiply", "add", "linear"):
            shutil.rmtree(repository / model / "3")
        add_version(repository, 4, factor=5, summand=0)
        (repository / "add" / "4" / "model.onnx").write_bytes(b"no graph")
        with pytest.raises(RollOutError, match="add was not loaded"):
            roll_out(server.url, repository, "linear")
        assert ask(client) == 25.0
        assert label(client) == "label of 2", "not those of the newest version in the repository"
    assert traffic.errors == []
    assert len(traffic.answers) > 20
    assert set(traffic.answers) == {11.0, 25.0}, "no answer came out of the old and the new steps together"


def test_a_server_without_model_control_is_left_alone(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    add_version(repository, 1, factor=2, summand=1)
    server = start_server(repository)
    add_version(repository, 2, factor=3, summand=10)
    with pytest.raises(RollOutError, match="--model-control"):
        roll_out(server.url, repository, "linear")
    with connect(server) as client:
        assert ask(client) == 11.0
