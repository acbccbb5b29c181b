"""Two Python models that tests have in hand: one takes as long as it is told, one until a gate is opened; callers."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import psutil

from serving.server import TritonServer
from tests.serving.conftest import Addressed, bytes_input, connect, infer_input
from tests.serving.graphs import save_python

# Answers its input after that many seconds, but fails or answers NaN when told to.
SLEEPER = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "seconds").as_numpy()
            time.sleep(max(0.0, float(seconds.max())))
            answer = np.full_like(seconds, np.nan) if (seconds < 0).any() else seconds
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("slept", answer)]))
        return responses
"""
SLEEPER_CONFIG = """max_batch_size: 4
input { name: "seconds" data_type: TYPE_FP32 dims: 1 }
output { name: "slept" data_type: TYPE_FP32 dims: 1 }
instance_group { kind: KIND_CPU count: 2 }
dynamic_batching { }"""
# Touches GATE.entered, then answers as soon as there is a file GATE.open: a test decides how long it is busy.
GATEKEEPER = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            gate = pb_utils.get_input_tensor_by_name(request, "gate").as_numpy()[0, 0].decode()
            Path(gate + ".entered").touch()
            while not Path(gate + ".open").exists():
                time.sleep(0.01)
        gates = [pb_utils.get_input_tensor_by_name(request, "gate").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("passed", gate)]) for gate in gates]
"""
GATEKEEPER_CONFIG = """max_batch_size: 1
input { name: "gate" data_type: TYPE_STRING dims: 1 }
output { name: "passed" data_type: TYPE_STRING dims: 1 }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { default_queue_policy {
  timeout_action: REJECT default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: %d } }"""
LANE_CONFIG = """platform: "ensemble" max_batch_size: 1
input { name: "gate" data_type: TYPE_STRING dims: 1 }
output { name: "passed" data_type: TYPE_STRING dims: 1 }
ensemble_scheduling { step { model_name: "gatekeeper" model_version: -1
  input_map { key: "gate" value: "gate" } output_map { key: "passed" value: "passed" } } }"""
REST_CONFIG = """platform: "ensemble" max_batch_size: 4
input { name: "seconds" data_type: TYPE_FP32 dims: 1 }
output { name: "slept" data_type: TYPE_FP32 dims: 1 }
ensemble_scheduling { step { model_name: "sleeper" model_version: -1
  input_map { key: "seconds" value: "seconds" } output_map { key: "slept" value: "slept" } } }"""


def write_sleeper(repository: Path) -> Path:
    """A Python model that takes its time, and the ensemble `rest` around it."""
    save_python(repository, "sleeper", SLEEPER, SLEEPER_CONFIG)
    (repository / "rest" / "1").mkdir(parents=True)
    (repository / "rest" / "config.pbtxt").write_text(REST_CONFIG)
    (repository / "rest" / "readiness.json").write_text(json.dumps([{"seconds": 0.0}]))
    return repository


def write_gatekeeper(repository: Path, open_gate: Path, max_queue_size: int = 0) -> Path:
    """A Python model of one instance behind a queue so long (0: without end), and the ensemble `lane` around it.

    Readiness passes `open_gate`, which is opened here.
    """
    save_python(repository, "gatekeeper", GATEKEEPER, GATEKEEPER_CONFIG % max_queue_size)
    (repository / "lane" / "1").mkdir(parents=True)
    (repository / "lane" / "config.pbtxt").write_text(LANE_CONFIG)
    (repository / "lane" / "readiness.json").write_text(json.dumps([{"gate": str(open_gate)}]))
    Path(f"{open_gate}.open").touch()
    return repository


def pass_gate(server: Addressed, gate: Path, seconds: float = 60.0, model: str = "lane") -> None:
    """Ask with a deadline that the queues know of too (in microseconds): an ensemble's steps hear no cancellation."""
    with contextlib.closing(connect(server)) as client:
        inputs = [bytes_input("gate", [os.fsencode(gate)])]
        client.infer(model, inputs, client_timeout=seconds, timeout=round(seconds * 1e6))


def sleep(server: Addressed, seconds: float, model: str = "rest", timeout: float = 30.0) -> np.ndarray:
    client = connect(server)
    try:
        inputs = [infer_input("seconds", np.array([[seconds]], np.float32), "FP32")]
        return client.infer(model, inputs, client_timeout=timeout).as_numpy("slept")
    finally:
        client.close()


def stubs(server: TritonServer) -> list[psutil.Process]:
    assert server.process is not None
    return [child for child in psutil.Process(server.process.pid).children() if "stub" in child.name()]
