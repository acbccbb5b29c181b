"""An exported release as a connection of the client: its own files, run by ONNX Runtime in this process, no Triton.

The steps of an ensemble are called one after the other, in the thread that asks: model.py as Triton's Python backend
would call it, model.onnx in a session. Several requests at a time are what fills the cores, so a session has one
thread: nothing waits for the slowest part of a batch, and reading and decoding go on beside the network.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from google.protobuf import json_format
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from client.errors import error_for
from client.transport import Headers
from repository.configs import RepositoryError, is_ensemble, newest_version, read_config
from repository.release import Release, current, verify

from . import python_backend

Arrays = Mapping[str, np.ndarray]
BACKEND = "triton_python_backend_utils"


class InProcessConnection:
    """A release, to be given to `ShelfwiseClient` in the place of a URL.

    Args:
        release: folder of a release, or another repository in Triton's layout.
        ensemble: of it.

    Raises:
        RepositoryError: there is no such ensemble, or a step is neither a Python model nor an ONNX file.
    """

    def __init__(self, release: Path, ensemble: str) -> None:
        self.url = f"{release} (in this process)"
        self.config = read_config(ensemble, release)
        if not is_ensemble(self.config):
            raise RepositoryError(f"{release}: {ensemble} is no ensemble")
        self._steps = [
            (_step(step.model_name, release), dict(step.input_map), dict(step.output_map))
            for step in self.config.ensemble_scheduling.step
        ]

    async def send(self, method: str, request: Any, seconds: float, headers: Headers) -> Any:
        if method == "ModelConfig":
            return service_pb2.ModelConfigResponse(config=self.config)
        tensors = {
            tensor.name: _array(tensor, content)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        for run, inputs, outputs in self._steps:
            found = run({name: tensors[value] for name, value in inputs.items()}, list(outputs))
            tensors |= {value: found[name] for name, value in outputs.items()}
        return _response(self.config, {output.name: tensors[output.name] for output in request.outputs})

    async def close(self) -> None: ...


def release_folder(repository: Path, release: int | None) -> Path:
    """The folder of a release, whose files are as they were published.

    Args:
        repository: of releases, or a plain folder in Triton's layout.
        release: its number; None is the current one.

    Raises:
        RepositoryError: there is none, or it has changed since.
    """
    folder = current(repository) if release is None else Release.load(repository / str(release)).folder
    verify(folder)
    return folder


class Step(Protocol):
    """A model: arrays by the names of its inputs to arrays by the names of outputs; raises ShelfwiseError."""

    def __call__(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays: ...


class PythonStep:
    """A served Python model."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        with import_path(folder):
            self._model = importlib.import_module("model").TritonPythonModel()
            self._model.give_way = lambda: None  # what Triton lets wait for other processes; here it is all of one
            self._model.initialize(
                {
                    "model_config": json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)),
                    "model_name": config.name,
                    "model_instance_kind": "CPU",
                }
            )

    def __call__(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        tensors = [python_backend.Tensor(*named) for named in inputs.items()]
        request = python_backend.InferenceRequest(tensors, outputs)
        response = self._model.execute([request])[0] or request.later.result()
        if response.error is not None:
            raise error_for(response.error.code, response.error.message)
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}


class OnnxStep:
    """A served ONNX file."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        try:
            found = self._session.run(list(outputs), dict(inputs))
        except Exception as error:  # ONNX Runtime has a class for every state, without a base of their own
            raise error_for("INTERNAL", f"onnx runtime error: {error}") from error
        return dict(zip(outputs, found, strict=True))


def _step(model: str, release: Path) -> Step:
    folder = newest_version(release / model)
    if folder is not None and (folder / "model.py").is_file():
        return PythonStep(folder, read_config(model, release))
    if folder is not None and (folder / "model.onnx").is_file():
        return OnnxStep(folder / "model.onnx")
    raise RepositoryError(f"{release / model} is neither a Python model nor an ONNX file: ask a server")


@contextlib.contextmanager
def import_path(folder: Path) -> Iterator[None]:
    """Modules are found in a served model's folder first, as Triton has it, and are not there for the next model."""
    own = {path.stem for path in folder.iterdir()} | {BACKEND}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    sys.modules[BACKEND] = python_backend
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _array(tensor: Any, content: bytes) -> np.ndarray:
    if tensor.datatype == "BYTES":
        return deserialize_bytes_tensor(content).reshape(tensor.shape)
    return np.frombuffer(content, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)


def _response(config: ModelConfig, outputs: Arrays) -> Any:
    response = service_pb2.ModelInferResponse(model_name=config.name)
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        content = serialize_byte_tensor(array).item() if array.dtype == np.object_ else array.tobytes()
        response.raw_output_contents.append(content)
    return response
