"""Several servers, copies of slow requests, and what every request says about itself: real servers that count."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from client import AsyncShelfwiseClient, InvalidInput, ShelfwiseClient, ShelfwiseError, endpoints, engine
from serving.server import TritonServer

from .test_faults import Link, address, silent_socket  # noqa: F401
from .test_stream import answered

Infer = Callable[[service_pb2.ModelInferRequest, grpc.ServicerContext], Any]


class Counted:
    """A way to answer that counts the requests; sick ones answer that the server is overloaded."""

    def __init__(self) -> None:
        self.requests = 0
        self.sick = False
        self._lock = threading.Lock()

    def __call__(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.requests += 1
        if self.sick:
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")
        return answered(request)


def test_servers_share_the_requests(grpc_server: Callable) -> None:
    servers = [Counted() for _ in range(3)]
    with ShelfwiseClient([grpc_server(server) for server in servers]) as client:
        for _ in range(30):
            client.categorize(title="a", k=1)
    assert [server.requests for server in servers] == [10, 10, 10]


def test_sick_server_is_left_alone_until_its_trial(grpc_server: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    sick, well = Counted(), Counted()
    sick.sick = True
    now = 1000.0
    monkeypatch.setattr(endpoints.time, "monotonic", lambda: now)  # of the ejections; deadlines read it, too
    with ShelfwiseClient([grpc_server(sick), grpc_server(well)], timeout=60) as client:
        for _ in range(20):
            client.categorize(title="a", k=1)
        assert sick.requests == 3
        now += 1.5
        for _ in range(10):
            client.categorize(title="a", k=1)
        assert sick.requests == 4, "one trial"
        now += 1.5  # ejected for two seconds by now
        client.categorize(title="a", k=1)
        assert sick.requests == 4
        now += 1.0
        sick.sick = False
        for _ in range(10):
            client.categorize(title="a", k=1)
        assert sick.requests >= 4 + 5, "it has its share again"


def test_refusals_are_no_sickness(grpc_server: Callable) -> None:
    counts = Counter[int]()

    def refusing(number: int) -> Infer:
        def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
            counts[number] += 1
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")

        return infer

    with ShelfwiseClient([grpc_server(refusing(number)) for number in range(2)]) as client:
        for _ in range(20):
            with pytest.raises(InvalidInput):
                client.categorize(title="a")
    assert counts == {0: 10, 1: 10}


def test_when_all_servers_are_sick_all_are_tried(grpc_server: Callable) -> None:
    servers = [Counted(), Counted()]
    servers[0].sick = servers[1].sick = True
    with ShelfwiseClient([grpc_server(server) for server in servers], timeout=1.0) as client:
        with pytest.raises(ShelfwiseError, match="queue is full"):
            client.categorize(title="a")
        servers[1].sick = False
        client.categorize(title="a", k=1, timeout=30)


def test_pauses_are_kept_while_the_only_other_server_is_ejected(
    grpc_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ejected, busy = Counted(), Counted()
    ejected.sick = True
    pauses: list[float] = []
    with ShelfwiseClient([grpc_server(ejected), grpc_server(busy)], timeout=20) as client:
        for _ in range(8):
            client.categorize(title="a", k=1)
        assert ejected.requests == 3
        busy.requests, busy.sick = 0, True
        monkeypatch.setattr(engine.random, "uniform", lambda least, most: pauses.append(most) or 0.02)
        with pytest.raises(ShelfwiseError):
            client.categorize(title="a", timeout=0.5)
    attempts = busy.requests + ejected.requests - 3
    assert attempts - 1 <= len(pauses) <= attempts


def test_readiness_of_one_server_is_enough(scripted_server: TritonServer, silent_socket: socket.socket) -> None:  # noqa: F811
    with ShelfwiseClient([address(silent_socket), scripted_server.url], timeout=4) as client:
        assert client.is_ready()


def test_lost_triton_costs_no_request(scripted_server: TritonServer) -> None:
    with ShelfwiseClient(["127.0.0.1:1", scripted_server.url], timeout=20) as client:
        assert client.is_ready()
        for number in range(10):
            assert client.categorize(title=str(number), k=1).categories[0].label == f"Title > {number}"


class Slow:
    """Answers when its gate is open; says when a request was cancelled."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.arrived = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        self.arrived.set()
        context.add_callback(lambda: self.gate.is_set() or self.cancelled.set())
        assert self.gate.wait(30)
        return answered(request)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_slow_request_is_sent_again_to_another_server_and_the_slow_one_cancelled(
    grpc_server: Callable, asynchronous: bool
) -> None:
    slow, quick = Slow(), Counted()
    urls = [grpc_server(slow), grpc_server(quick)]

    async def ask() -> None:
        async with AsyncShelfwiseClient(urls, hedge_after=0.1, timeout=20) as client:
            await client.categorize(title="a", k=1)

    if asynchronous:
        asyncio.run(ask())
    else:
        with ShelfwiseClient(urls, hedge_after=0.1, timeout=20) as client:
            client.categorize(title="a", k=1)
    assert slow.arrived.is_set()
    assert slow.cancelled.wait(10)
    assert quick.requests == 1
    slow.gate.set()


def test_refusal_of_one_copy_is_the_answer(grpc_server: Callable) -> None:
    slow = Slow()

    def refuse(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")

    with ShelfwiseClient([grpc_server(slow), grpc_server(refuse)], hedge_after=0.1, timeout=20) as client:
        with pytest.raises(InvalidInput, match="refused"):
            client.categorize(title="a")
    slow.gate.set()


def test_quick_answers_are_not_asked_for_twice_and_nothing_is_unless_wanted(grpc_server: Callable) -> None:
    for hedge_after in (5.0, None):
        server = Counted()
        with ShelfwiseClient(grpc_server(server), hedge_after=hedge_after) as client:
            answers = list(client.categorize_many([(None, "a")] * 10, k=1, batch_size=1))
        assert not any(isinstance(answer, ShelfwiseError) for answer in answers)
        assert server.requests == 10


def test_every_request_has_an_id_and_a_trace_and_errors_name_them(grpc_server: Callable) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        seen.append((request.id, dict(context.invocation_metadata())))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")

    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    tokens = itertools.count()
    url = grpc_server(infer)
    for headers in (None, lambda: {"Traceparent": trace, "authorization": f"token {next(tokens)}"}):
        with ShelfwiseClient(url, headers=headers) as client:
            for _ in range(2):
                with pytest.raises(InvalidInput) as caught:
                    client.categorize(title="a")
                assert caught.value.request_id == seen[-1][0]
    assert len({number for number, _ in seen}) == 4
    for number, metadata in seen[:2]:
        assert re.fullmatch(rf"00-{number}-[0-9a-f]{{16}}-01", metadata["traceparent"])
    assert [metadata["traceparent"] for _, metadata in seen[2:]] == [trace] * 2
    assert [metadata["authorization"] for _, metadata in seen[2:]] == ["token 0", "token 1"]


class Meter(Link):
    """Counts the bytes that it forwards."""

    forwarded = 0

    @staticmethod
    def _forward(source: Any, sink: Any, cut: threading.Event) -> None:
        while data := source.recv(2**16):
            Meter.forwarded += len(data)
            sink.sendall(data)


@pytest.mark.parametrize("compression", ["gzip", "deflate", None])
@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_compression_makes_requests_smaller(contract_server: TritonServer, wire: str, compression: str | None) -> None:
    image = bytes(2**20)
    meter = Meter(contract_server.url if wire == "grpc" else contract_server.http_url.removeprefix("http://"))
    url = address(meter.listening) if wire == "grpc" else f"http://{address(meter.listening)}"
    Meter.forwarded = 0
    with meter.listening, ShelfwiseClient(contract_server.url) as plain:
        with ShelfwiseClient(url, compression=compression) as client:
            assert client.embed_image(image) == plain.embed_image(image)
    assert (Meter.forwarded < 2**16) == (compression is not None)


def test_what_does_not_fit_together_is_refused() -> None:
    for arguments, message in (
        ({"url": []}, "at least one url"),
        ({"url": "127.0.0.1:1", "compression": "zstd"}, "compression"),
        ({"url": "127.0.0.1:1", "hedge_after": 0}, "hedge_after must be"),
        ({"url": ["127.0.0.1:1", "127.0.0.1:2"], "shared_memory": True}, "one gRPC server on this machine"),
        ({"url": "http://127.0.0.1:1", "shared_memory": True}, "one gRPC server on this machine"),
        ({"url": "10.0.0.1:1", "shared_memory": True}, "one gRPC server on this machine"),
    ):
        with pytest.raises(ValueError, match=message):
            ShelfwiseClient(**arguments)
