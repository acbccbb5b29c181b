"""The client under asyncio: requests overlap in one thread, and giving one up reaches the server."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from client import (
    AsyncShelfwiseClient,
    DeadlineExceeded,
    InvalidInput,
    RequestCancelled,
    ServerUnavailable,
    ShelfwiseClient,
    ShelfwiseError,
)
from serving.addresses import free_ports
from serving.server import TritonServer
from tests.triton_state import CANCELLATION_SECONDS, pending_requests, wait_for

from .test_stream import answered, labels


def executed(server: TritonServer) -> int:
    """Rows that the scripted model has answered so far, this one included."""
    with ShelfwiseClient(server.url) as client:
        return client.categorize(title="count", k=1).categories[0].id + 1


def test_requests_of_one_loop_overlap(grpc_server: Callable) -> None:
    everybody = threading.Barrier(8)

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        everybody.wait(timeout=30)
        return answered(request)

    async def ask() -> None:
        async with AsyncShelfwiseClient(grpc_server(infer), timeout=30) as client:
            await asyncio.gather(*(client.categorize(title="a", k=1) for _ in range(8)))

    asyncio.run(ask())


@pytest.mark.parametrize("by", ["cancel", "timeout"])
def test_request_that_is_given_up_is_dropped_from_the_queue(
    scripted_server: TritonServer, tmp_path: Path, by: str
) -> None:
    gate = tmp_path / "gate"
    before = executed(scripted_server)

    async def ask() -> None:
        async with AsyncShelfwiseClient(scripted_server.url) as client:
            busy = asyncio.create_task(client.categorize(title=f"gate {gate}", k=1, timeout=30))
            await asyncio.to_thread(wait_for, gate.with_suffix(".entered").exists)
            if by == "timeout":
                with pytest.raises(DeadlineExceeded):
                    await client.categorize(title="given up", k=1, timeout=0.3)
            else:
                given_up = asyncio.create_task(client.categorize(title="given up", k=1))
                await asyncio.to_thread(wait_for, lambda: pending_requests(scripted_server, "categorize") == 1)
                given_up.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await given_up
            await asyncio.sleep(CANCELLATION_SECONDS)
            gate.with_suffix(".open").touch()
            await busy

    asyncio.run(ask())
    assert executed(scripted_server) - before == 2  # the one at the gate, and the count


def test_leaving_a_stream_drops_what_waits_at_the_server(scripted_server: TritonServer, tmp_path: Path) -> None:
    first, gate = tmp_path / "first", tmp_path / "gate"
    first.with_suffix(".open").touch()
    before = executed(scripted_server)

    async def source() -> AsyncIterator[tuple[None, str]]:
        yield None, f"gate {first}"
        await asyncio.to_thread(wait_for, first.with_suffix(".entered").exists)  # not in one batch with the next
        yield None, f"gate {gate}"
        await asyncio.to_thread(wait_for, gate.with_suffix(".entered").exists)
        for _ in range(3):
            yield None, "never"

    async def ask() -> None:
        async with AsyncShelfwiseClient(scripted_server.url) as client:
            answers = client.categorize_many(source(), k=1, batch_size=1, in_flight=5)
            await anext(answers)
            await asyncio.to_thread(wait_for, lambda: pending_requests(scripted_server, "categorize") == 3)
            await answers.aclose()
            await asyncio.sleep(CANCELLATION_SECONDS)
            gate.with_suffix(".open").touch()

    asyncio.run(ask())
    assert executed(scripted_server) - before == 3  # the first, the one at the gate, and the count


def test_reads_ahead_no_further_than_one_batch_more_than_is_in_flight(scripted_server: TritonServer) -> None:
    read = itertools.count(1)
    last = 0

    async def source() -> AsyncIterator[tuple[None, str]]:
        nonlocal last
        while True:
            last = next(read)
            yield None, f"title {last}"

    async def ask() -> None:
        async with AsyncShelfwiseClient(scripted_server.url) as client:
            answers = client.categorize_many(source(), k=1, batch_size=2, in_flight=3)
            for taken in range(1, 30):
                await anext(answers)
                assert last <= taken + 2 * (3 + 1)
            await answers.aclose()

    asyncio.run(ask())


def test_bad_rows_cost_only_themselves(scripted_server: TritonServer) -> None:
    async def ask() -> list[Any]:
        items = [(None, "a"), (None, "refuse"), (None, None), (None, "b")]
        async with AsyncShelfwiseClient(scripted_server.url) as client:
            return [answer async for answer in client.categorize_many(items, k=1)]

    assert labels(asyncio.run(ask())) == ["a", InvalidInput, InvalidInput, "b"]


def test_closing_the_client_ends_its_calls(scripted_server: TritonServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def ask() -> None:
        client = AsyncShelfwiseClient(scripted_server.url)
        waiting = asyncio.create_task(client.categorize(title=f"gate {gate}", timeout=30))
        await asyncio.to_thread(wait_for, gate.with_suffix(".entered").exists)
        await client.close()
        with pytest.raises(RequestCancelled, match="closed"):
            await waiting
        with pytest.raises(RequestCancelled, match="closed"):
            await client.categorize(title="a")

    asyncio.run(ask())
    gate.with_suffix(".open").touch()


def test_server_that_is_gone_is_unavailable_and_ends_a_stream() -> None:
    (port,) = free_ports("127.0.0.1", 1)

    async def ask() -> list[Any]:
        found: list[Any] = []
        async with AsyncShelfwiseClient(f"127.0.0.1:{port}", timeout=0.3) as client:
            assert not await client.is_ready()
            with pytest.raises(ServerUnavailable, match="tried"):
                await client.categorize(title="a")
            endless = ((None, str(number)) for number in itertools.count())
            answers = client.categorize_many(endless, batch_size=2, in_flight=2, give_up_after=3)
            found.extend([await anext(answers) for _ in range(6)])
            with pytest.raises(ServerUnavailable, match="3 requests in a row"):
                await anext(answers)
        return found

    assert all(isinstance(answer, ShelfwiseError) for answer in asyncio.run(ask()))


def test_client_may_be_made_before_its_loop(scripted_server: TritonServer) -> None:
    client = AsyncShelfwiseClient(scripted_server.url)

    async def ask() -> str:
        async with client:
            return (await client.categorize(title="a", k=1)).categories[0].label

    assert asyncio.run(ask()) == "Title > a"
