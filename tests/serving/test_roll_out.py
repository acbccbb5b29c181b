"""A release taken into service under traffic: no failed request, no mixed answer, and the way back stays open."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import shelfwise
from repository.configs import RepositoryError
from repository.release import current
from serving.readiness import NotReady
from serving.roll_out import RollOut, RollOutError, roll_out
from serving.server import TritonServer
from tests.releases import publish_linear
from tests.serving.conftest import connect, infer_input
from tests.serving.graphs import ROOT
from tests.triton_state import wait_for


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


def ask(client: InferenceServerClient, ensemble: str = "linear") -> float:
    x = infer_input("x", np.array([[5.0]], np.float32), "FP32")
    return float(client.infer(ensemble, [x], client_timeout=30).as_numpy("z")[0, 0])


def label(client: InferenceServerClient) -> str:
    """The label of z, by Triton's classification extension."""
    x = infer_input("x", np.array([[5.0]], np.float32), "FP32")
    answer = client.infer("linear", [x], outputs=[InferRequestedOutput("z", class_count=1)], client_timeout=30)
    return answer.as_numpy("z")[0, 0].decode().split(":")[-1]


def wait_for_models(client: InferenceServerClient, *models: str) -> None:
    """Until these models and no others are loaded: Triton answers an unload before it is done."""

    def loaded() -> set[str]:
        statistics = client.get_inference_statistics().model_stats
        return {model.name for model in statistics if client.is_model_ready(model.name)}

    wait_for(lambda: loaded() == set(models))


def test_releases_are_taken_forwards_and_backwards_under_traffic(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    repository = tmp_path / "a repository"
    publish_linear(repository, factor=2, summand=1)
    server = start_server(repository, model_control=True)
    with connect(server) as client, Traffic(server) as traffic:
        with pytest.raises(RollOutError, match="release 1 is served already"):
            roll_out(server.url, repository)
        # As many categories as the one before had, times three, and a step of another name.
        publish_linear(repository, factor=3, summand=10, second="shift", width=3)
        assert roll_out(server.url, repository) == RollOut(2, {"linear": (1, 2)})
        assert ask(client) == 25.0
        assert label(client) == "3x + 10"
        wait_for_models(client, "linear", "multiply", "shift")  # as a start would have it, and nothing else

        # Backwards and forwards, nothing removed.
        assert roll_out(server.url, repository, 1) == RollOut(1, {"linear": (2, 1)})
        assert (ask(client), label(client)) == (11.0, "2x + 1")
        wait_for_models(client, "linear", "multiply", "add")
        assert current(repository) == repository / "1", "a restart would serve the same"
        assert roll_out(server.url, repository, 2).release == 2
        assert ask(client) == 25.0

        # Releases whose answer is not finite, or that do not load: what was served goes on, and so does the next start.
        publish_linear(repository, factor=4, summand=float("nan"))
        shelfwise_rollback(repository)
        with pytest.raises(NotReady, match="output z is not finite"):
            roll_out(server.url, repository, 3)
        publish_linear(repository, factor=5, summand=0, broken=True)
        shelfwise_rollback(repository)
        with pytest.raises(RollOutError, match="linear_release_4 was not loaded"):
            roll_out(server.url, repository, 4)
        assert (ask(client), label(client)) == (25.0, "3x + 10")
        wait_for_models(client, "linear", "multiply", "shift")
        assert current(repository) == repository / "2"
    assert traffic.errors == []
    assert len(traffic.answers) > 20
    assert set(traffic.answers) == {11.0, 25.0}, "no answer came out of steps of two releases"


def shelfwise_rollback(repository: Path) -> None:
    result = CliRunner().invoke(shelfwise.app, ["rollback", "--repository", str(repository)])
    assert result.exit_code == 0, result.output


def test_other_ensembles_go_on_as_they_are(start_server: Callable[..., TritonServer], tmp_path: Path) -> None:
    publish_linear(tmp_path, factor=2, summand=1)
    server = start_server(tmp_path, model_control=True)
    # An ensemble that shares one step with the other and would replace the second.
    publish_linear(tmp_path, factor=2, summand=7, name="affine")
    with connect(server) as client, Traffic(server) as traffic:
        assert roll_out(server.url, tmp_path) == RollOut(2, {"affine": (None, 2)})
        assert (ask(client), ask(client, "affine")) == (11.0, 17.0)
        wait_for_models(client, "linear", "affine", "multiply", "add", "affine_add")
        roll_out(server.url, tmp_path, 1)
        wait_for_models(client, "linear", "multiply", "add")
    assert traffic.errors == []
    assert set(traffic.answers) == {11.0}


def test_a_release_whose_files_changed_is_not_taken(start_server: Callable[..., TritonServer], tmp_path: Path) -> None:
    publish_linear(tmp_path, factor=2, summand=1)
    server = start_server(tmp_path, model_control=True)
    publish_linear(tmp_path, factor=3, summand=10)
    weights = tmp_path / "2" / "add" / "2" / "model.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(RepositoryError, match=r"add/2/model\.onnx changed"):
        roll_out(server.url, tmp_path)
    with connect(server) as client:
        assert ask(client) == 11.0


def test_servers_of_something_else_are_left_alone(start_server: Callable[..., TritonServer], tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    publish_linear(ours, factor=2, summand=1)
    publish_linear(other, factor=4, summand=4)
    server = start_server(ours)
    publish_linear(ours, factor=3, summand=10)
    for repository in (ours, other):
        with pytest.raises(RollOutError, match="it serves another repository, or was started without --model-control"):
            roll_out(server.url, repository)
    with connect(server) as client:
        assert ask(client) == 11.0


# Kills itself before the N-th thing that it would tell the server.
KILLED = """
import os, signal, sys
import shelfwise
from tritonclient.grpc import InferenceServerClient
left = int(sys.argv.pop(1))
def counted(method):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    return call
for name in ("load_model", "unload_model", "infer"):
    setattr(InferenceServerClient, name, counted(getattr(InferenceServerClient, name)))
shelfwise.app(sys.argv[1:])
"""


def test_a_roll_out_killed_anywhere_mixes_nothing_and_the_next_one_goes_on(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    publish_linear(tmp_path, factor=2, summand=1)
    server = start_server(tmp_path, model_control=True)
    answers = {1: 11.0, 2: 25.0}
    publish_linear(tmp_path, factor=3, summand=10)
    with connect(server) as client, Traffic(server) as traffic:
        wanted, calls = 2, 0
        while True:
            command = ["repository", "roll-out", "--repository", str(tmp_path), "--url", server.url]
            program = [sys.executable, "-c", KILLED, str(calls), *command, "--version", str(wanted)]
            killed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
            if killed.returncode == 0:
                break
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            assert ask(client) in answers.values()
            with Traffic(server) as after:
                roll_out(server.url, tmp_path, wanted)
            assert ask(client) == answers[wanted]
            assert after.errors == []
            wait_for_models(client, "linear", "multiply", "add")
            assert current(tmp_path) == tmp_path / str(wanted)
            wanted, calls = 3 - wanted, calls + 3
    assert calls >= 9, "loads, unloads and questions of a roll-out"
    assert traffic.errors == []
    assert set(traffic.answers) == set(answers.values())
