"""What a served Python model imports as `triton_python_backend_utils`, for a process without Triton.

As much of it as the models of model_repository/ use: tensors in, tensors or an error out, now or later through a
sender. An error's code is the name of the gRPC status that Triton would answer with.
Source: https://github.com/triton-inference-server/python_backend, README.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np


class Tensor:
    """A named array; BYTES are arrays of objects."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    """Why a request has no answer."""

    UNKNOWN = "UNKNOWN"
    INTERNAL = "INTERNAL"
    NOT_FOUND = "NOT_FOUND"
    INVALID_ARG = "INVALID_ARGUMENT"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNIMPLEMENTED"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.message = message
        self.code = code


class InferenceResponse:
    """The outputs of a request, or its error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.output_tensors = output_tensors
        self.error = error


class InferenceRequest:
    """One request, which is its own sender; `later` is the response that comes through it."""

    def __init__(self, tensors: Sequence[Tensor], outputs: Sequence[str]) -> None:
        self.tensors = {tensor.name(): tensor for tensor in tensors}
        self._outputs = list(outputs)
        self.later: Future[InferenceResponse] = Future()

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def get_response_sender(self) -> InferenceRequest:
        return self

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self.later.set_result(response)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """An input of a request, None where it has none of that name."""
    return request.tensors.get(name)
