"""Servers to call: a real Triton whose model does what the title says, and real gRPC servers with chosen answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import ShelfwiseClient
from serving.server import TritonServer

REPOSITORY = Path(__file__).parent / "repository"
CONTRACTS = Path(__file__).parent / "contracts"

Infer = Callable[[service_pb2.ModelInferRequest, grpc.ServicerContext], service_pb2.ModelInferResponse]


@pytest.fixture(scope="session")
def triton_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton") / "log"


@pytest.fixture(scope="session")
def scripted_server(triton_log: Path) -> Iterator[TritonServer]:
    """Triton on tests/client/repository: see the model there for what a title makes it do."""
    server = TritonServer(REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, log_file=triton_log)
    server.start()
    yield server
    server.stop(grace_seconds=1)


@pytest.fixture(scope="session")
def contract_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Triton on all served contracts: see contracts/contracts.py."""
    repository = tmp_path_factory.mktemp("contracts")
    for config in CONTRACTS.glob("*/config.pbtxt"):
        version = repository / config.parent.name / "1"
        version.mkdir(parents=True)
        shutil.copy(config, version.parent)
        shutil.copy(CONTRACTS / "contracts.py", version / "model.py")
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository, **ports, log_file=repository / "log", shared_memory=True) as server:
        yield server


@pytest.fixture
def client(scripted_server: TritonServer) -> Iterator[ShelfwiseClient]:
    with ShelfwiseClient(scripted_server.url, timeout=10) as client:
        yield client


@pytest.fixture
def grpc_server() -> Iterator[Callable[[Infer], str]]:
    """Starts a gRPC server whose ModelInfer is the given function, and gives its address."""
    servers = []

    def start(infer: Infer) -> str:
        class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
            def ModelInfer(
                self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
            ) -> service_pb2.ModelInferResponse:
                return infer(request, context)

        server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(grace=None)
