"""Fixtures of the serving tests: servers on free ports with their log in a file, and the requests to send to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from serving.server import TritonServer


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TritonServer]]:
    """Starts servers on free ports; they end with the module."""
    servers: list[TritonServer] = []

    def start(repository: Path, **options: Any) -> TritonServer:
        log_file = tmp_path_factory.mktemp("log") / "triton.log"
        server = TritonServer(
            repository,
            grpc_port=0,
            metrics_port=0,
            **{"log_file": log_file, "grace_seconds": 10} | options,
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def infer_input(name: str, value: np.ndarray, data_type: str) -> InferInput:
    tensor = InferInput(name, list(value.shape), data_type)
    tensor.set_data_from_numpy(value)
    return tensor


def bytes_input(name: str, rows: list[bytes]) -> InferInput:
    """A BYTES[1] input, one element a row."""
    return infer_input(name, np.array(rows, np.object_).reshape(-1, 1), "BYTES")


class Addressed(Protocol):
    """Whatever has the gRPC address of a server."""

    @property
    def url(self) -> str: ...


def connect(server: Addressed) -> InferenceServerClient:
    return InferenceServerClient(server.url)
