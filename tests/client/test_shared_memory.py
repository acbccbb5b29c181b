"""Large requests through /dev/shm: same answers, nothing left behind by the living or the killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient import grpc as triton

from client import AsyncShelfwiseClient, ShelfwiseClient
from client.shared_memory import LEAST_BYTES
from serving.addresses import free_ports
from serving.server import TritonServer

from .conftest import REPOSITORY

IMAGE = bytes(range(256)) * (LEAST_BYTES // 256)


@pytest.fixture
def raw(contract_server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(contract_server.url) as client:
        yield client


def regions(raw: triton.InferenceServerClient) -> list[str]:
    return sorted(raw.get_system_shared_memory_status().regions)


def files() -> list[str]:
    return [file.name for file in Path("/dev/shm").glob("shelfwise-client-*")]


def test_large_requests_use_one_region_again_and_closing_releases_it(
    contract_server: TritonServer, raw: triton.InferenceServerClient
) -> None:
    with ShelfwiseClient(contract_server.url) as plain:
        with ShelfwiseClient(contract_server.url, shared_memory=True) as client:
            assert client.embed_image(b"small") == plain.embed_image(b"small")
            assert regions(raw) == []
            for image in (IMAGE, IMAGE[:-1] + b"\0", IMAGE):
                assert client.embed_image(image) == plain.embed_image(image)
                assert len(regions(raw)) == 1
                assert files() == []
            items = [(IMAGE[place:], str(place)) for place in range(12)]
            found = list(client.categorize_many(items, k=3, batch_size=2, in_flight=3))
            assert 1 < len(regions(raw)) <= 1 + 3
        assert regions(raw) == []
        assert found == list(plain.categorize_many(items, k=3))


def test_asyncio_uses_it_too(contract_server: TritonServer, raw: triton.InferenceServerClient) -> None:
    async def ask() -> list[object]:
        async with AsyncShelfwiseClient(contract_server.url, shared_memory=True) as client:
            answers = await asyncio.gather(*(client.embed_image(IMAGE + bytes(place)) for place in range(3)))
            assert 1 <= len(regions(raw)) <= 3
            return answers

    with ShelfwiseClient(contract_server.url) as plain:
        assert asyncio.run(ask()) == [plain.embed_image(IMAGE + bytes(place)) for place in range(3)]
    assert regions(raw) == []


KILLED = """
import sys
from client import ShelfwiseClient
from client.shared_memory import LEAST_BYTES
client = ShelfwiseClient(sys.argv[1], shared_memory=True)
client.embed_image(bytes(LEAST_BYTES))
print("asked", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_client_leaves_is_released_by_the_next(
    contract_server: TritonServer, raw: triton.InferenceServerClient
) -> None:
    command = [sys.executable, "-c", KILLED, contract_server.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as alive:  # type: ignore[call-overload]
        for process in (killed, alive):
            assert process.stdout.readline() == b"asked\n"
        assert files() == []
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(regions(raw)) == 2
        orphan = Path("/dev/shm", regions(raw)[0].rpartition("-")[0].rpartition("-")[0] + f"-{killed.pid}-00")
        orphan.touch()  # as if it had been killed a moment earlier
        with ShelfwiseClient(contract_server.url, shared_memory=True) as client:
            client.embed_image(IMAGE)
            assert {f"-{alive.pid}-" in name for name in regions(raw)} == {True, False}
            assert not any(f"-{killed.pid}-" in name for name in regions(raw))
            assert not orphan.exists()
        alive.stdin.close()
        alive.wait()


def test_server_that_allows_none_is_asked_as_usual(scripted_server: TritonServer) -> None:
    with ShelfwiseClient(scripted_server.url, shared_memory=True) as client:
        assert client.categorize(IMAGE, "a", k=2).categories[1].label == f"Image bytes > {len(IMAGE)}"
    assert files() == []


def test_restarted_server_costs_no_request(tmp_path: Path) -> None:
    grpc_port, metrics = free_ports("127.0.0.1", 2)
    options: dict[str, Any] = {"grpc_port": grpc_port, "metrics_port": metrics, "shared_memory": True}
    with TritonServer(REPOSITORY, **options, log_file=tmp_path / "first") as server:
        client = ShelfwiseClient(server.url, shared_memory=True, timeout=30)
        client.categorize(IMAGE, "a", k=1)
    with TritonServer(REPOSITORY, **options, log_file=tmp_path / "second"), client:
        assert client.categorize(IMAGE, "b", k=1).categories[0].label == "Title > b"
        assert client.categorize(IMAGE, "c", k=1).categories[0].label == "Title > c"
