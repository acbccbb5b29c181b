"""Faults between client and server, made with real sockets, real processes and signals: every call ends in time."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from client import (
    TLS,
    AccessDenied,
    DeadlineExceeded,
    RequestCancelled,
    ServerUnavailable,
    ShelfwiseClient,
    ShelfwiseError,
    engine,
)
from serving.addresses import free_ports
from serving.server import TritonServer
from tests.triton_state import CANCELLATION_SECONDS, wait_for

from .conftest import REPOSITORY

TOLERANCE = 5.0  # seconds that a loaded machine may take to notice that a deadline has passed; short of the default 10


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + TOLERANCE


@pytest.fixture
def silent_socket() -> Iterator[socket.socket]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[TritonServer]:
    """A server that the test may stop."""
    server = TritonServer(REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, log_file=tmp_path / "log")
    server.start()
    yield server
    server.stop(grace_seconds=0)


def address(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_server_that_is_not_there_is_unavailable_within_the_deadline() -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with ShelfwiseClient(f"127.0.0.1:{port}", timeout=0.5) as client:
        with (
            ends_within(0.5),
            pytest.raises(ServerUnavailable, match=rf"127\.0\.0\.1:{port}.*tried \d+ times") as caught,
        ):
            client.categorize(title="a")
        assert caught.value.status == "UNAVAILABLE"
        with ends_within(0.1):
            assert not client.is_ready()


def test_host_without_an_address_is_unavailable_within_the_deadline() -> None:
    unreachable = pytest.raises((ServerUnavailable, DeadlineExceeded), match=r"shelfwise\.invalid")
    with ShelfwiseClient("shelfwise.invalid:8001", timeout=0.5) as client, ends_within(0.5), unreachable:
        client.categorize(title="a")


def test_server_that_never_answers_exceeds_the_deadline_and_no_more(silent_socket: socket.socket) -> None:
    with ShelfwiseClient(address(silent_socket), timeout=0.5) as client:
        with ends_within(0.5), pytest.raises(DeadlineExceeded, match=r"within 0\.5 s") as caught:
            client.categorize(title="a")
        assert caught.value.status == "DEADLINE_EXCEEDED"
        with ends_within(0.2):
            assert not client.is_ready(timeout=0.2)
        with ends_within(0.3), pytest.raises(DeadlineExceeded):
            client.server_metadata(timeout=0.3)


def test_server_that_hangs_up_is_retried_until_the_deadline(silent_socket: socket.socket) -> None:
    connections = []

    def hang_up() -> None:
        while True:
            try:
                connection, _ = silent_socket.accept()
            except OSError:
                return
            connections.append(connection)
            connection.close()

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    unavailable = pytest.raises(ServerUnavailable, match="tried")
    with ShelfwiseClient(address(silent_socket), timeout=1.0) as client, ends_within(1.0), unavailable:
        client.categorize(title="a")
    assert len(connections) > 1


def test_port_of_another_protocol_is_said_so(scripted_server: TritonServer) -> None:
    refused = pytest.raises(ShelfwiseError, match=str(scripted_server.metrics_port))
    with ShelfwiseClient(f"127.0.0.1:{scripted_server.metrics_port}", timeout=1.0) as client, ends_within(1.0), refused:
        client.categorize(title="a")


def test_unavailable_is_retried_with_growing_pauses_and_the_rest_of_the_deadline(
    grpc_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest_pauses: list[float] = []

    def pause(least: float, most: float) -> float:
        assert least == 0
        longest_pauses.append(most)
        return most

    monkeypatch.setattr(engine.random, "uniform", pause)
    arrivals: list[float] = []
    remaining: list[float] = []

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        arrivals.append(time.monotonic())
        remaining.append(context.time_remaining())
        time.sleep(0.2)
        if len(arrivals) < 6:
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "reached")

    with ShelfwiseClient(grpc_server(infer)) as client, pytest.raises(ShelfwiseError, match="reached"):
        client.categorize(title="a", timeout=5.0)
    assert len(arrivals) == 6
    assert longest_pauses == [0.05 * 2**number for number in range(5)]
    waited = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert all(gap >= pause for gap, pause in zip(waited, longest_pauses, strict=True))
    # The server is told the time left of one deadline, not a new one at every attempt. gRPC rounds it up a little.
    for arrival, left in zip(arrivals, remaining, strict=True):
        assert left < 1.05 * (5.0 - (arrival - arrivals[0]))


def test_replicas_take_turns_and_a_lost_one_is_passed_over(
    scripted_server: TritonServer, own_server: TritonServer
) -> None:
    with ShelfwiseClient(f"ipv4:{scripted_server.url},{own_server.url}", timeout=5) as client:
        assert client.is_ready()
        ids = [client.categorize(title=f"title {number}", k=1).categories[0].id for number in range(20)]
        assert sorted(ids) != list(range(min(ids), min(ids) + 20)), "one server has counted all requests"
        own_server.kill()
        for number in range(20):
            client.categorize(title=f"title {number}", k=1)


class Link:
    """A TCP forwarder whose connections can be made to lose everything without being closed, as a lost machine does."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self.target = (host, int(port))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            far = socket.create_connection(self.target)
            cut = self.cut
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink, cut), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):  # the other side has hung up
            while data := source.recv(2**16):
                if not cut.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def lose_connections(self) -> None:
        """Those that exist; new ones work."""
        self.cut.set()
        self.cut = threading.Event()


def test_connection_that_went_dead_is_replaced_and_the_call_repeated(scripted_server: TritonServer) -> None:
    link = Link(scripted_server.url)
    with link.listening, ShelfwiseClient(address(link.listening), timeout=30) as client:
        client.categorize(title="a", k=1)
        link.lose_connections()
        with ends_within(21):
            assert client.categorize(title="b", k=1).categories[0].label == "Title > b"


def test_health_is_asked_once() -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with ShelfwiseClient(f"127.0.0.1:{port}", timeout=30.0) as client, ends_within(0.2):
        assert not client.is_ready()


def test_slow_answer_exceeds_the_deadline_and_the_queued_request_is_dropped(
    client: ShelfwiseClient, tmp_path: Path
) -> None:
    before = client.categorize(title="a", k=1).categories[0].id
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(1) as thread:
        busy = thread.submit(client.categorize, title=f"gate {gate}", k=1, timeout=60)
        wait_for(gate.with_suffix(".entered").exists)
        with ends_within(0.3), pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            client.categorize(title="given up", timeout=0.3)
        time.sleep(CANCELLATION_SECONDS)
        gate.with_suffix(".open").touch()
        assert busy.result().categories[0].id == before + 1
    assert client.categorize(title="b", k=1).categories[0].id == before + 2


def test_overloaded_server_is_tried_again_until_it_takes_the_request(client: ShelfwiseClient) -> None:
    with ThreadPoolExecutor(24) as threads:  # the queue of the model holds 9
        answers = list(threads.map(lambda _: client.categorize(title="sleep 0.05", k=1, timeout=20), range(24)))
    assert len({answer.categories[0].id for answer in answers}) == 24


def test_closing_the_client_ends_the_calls_of_other_threads(scripted_server: TritonServer, tmp_path: Path) -> None:
    client = ShelfwiseClient(scripted_server.url, timeout=60)
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.categorize, title=f"gate {gate}")
        wait_for(gate.with_suffix(".entered").exists)
        client.close()
        with ends_within(0.1), pytest.raises(RequestCancelled):
            waiting.result()
        gate.with_suffix(".open").touch()
    with pytest.raises(RequestCancelled, match="closed"):
        client.categorize(title="a")


# A shell that puts the tests into the background has them ignore the signal, and their children with them.
INTERRUPTED = """
import signal
import sys
from client import ShelfwiseClient

signal.signal(signal.SIGINT, signal.default_int_handler)

def titles():
    yield None, "a"
    yield None, f"gate {sys.argv[2]}"

with ShelfwiseClient(sys.argv[1], timeout=60) as client:
    try:
        if sys.argv[3] == "call":
            client.categorize(title=f"gate {sys.argv[2]}")
        else:
            list(client.categorize_many(titles(), k=1, batch_size=1))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("asking", ["call", "stream"])
def test_interrupt_from_the_keyboard_ends_a_call(scripted_server: TritonServer, tmp_path: Path, asking: str) -> None:
    gate = tmp_path / "gate"
    command = [sys.executable, "-c", INTERRUPTED, scripted_server.url, str(gate), asking]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        wait_for(gate.with_suffix(".entered").exists)  # the server is at work on it
        caller.send_signal(signal.SIGINT)
        output, _ = caller.communicate(timeout=30)  # before the gate opens
        gate.with_suffix(".open").touch()
    assert (output, caller.returncode) == ("interrupted\n", 0)


def test_loopback_is_asked_directly_whatever_proxy_the_environment_names(scripted_server: TritonServer) -> None:
    (nobody,) = free_ports("127.0.0.1", 1)
    proxy = f"http://127.0.0.1:{nobody}"
    program = "import sys; from client import ShelfwiseClient; print(ShelfwiseClient(sys.argv[1]).is_ready())"
    port = scripted_server.url.rpartition(":")[2]
    for url in (scripted_server.url, f"localhost:{port}", f"ipv4:{scripted_server.url}", scripted_server.http_url):
        answer = subprocess.run(
            [sys.executable, "-c", program, url],
            env=os.environ | {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout == "True\n", url


def test_model_whose_process_is_being_started_again_is_asked_again(grpc_server: Callable) -> None:
    arrived = itertools.count(1)

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        if next(arrived) < 4:
            context.abort(
                grpc.StatusCode.INTERNAL,
                "Failed to process the request(s) for model instance 'categorize_0_0', message: Stub process "
                "'categorize_0_0' is not healthy.",
            )
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "reached")

    with ShelfwiseClient(grpc_server(infer), timeout=30) as client, pytest.raises(ShelfwiseError, match="reached"):
        client.categorize(title="a")


def test_frozen_server_exceeds_the_deadline_and_serves_again_when_it_thaws(own_server: TritonServer) -> None:
    assert own_server.process is not None
    with ShelfwiseClient(own_server.url, timeout=5) as connected, ShelfwiseClient(own_server.url) as fresh:
        connected.categorize(title="a", k=1)
        os.kill(own_server.process.pid, signal.SIGSTOP)
        for client in (connected, fresh):
            with ends_within(0.5), pytest.raises(DeadlineExceeded):
                client.categorize(title="b", timeout=0.5)
        os.kill(own_server.process.pid, signal.SIGCONT)
        for client in (connected, fresh):
            assert client.categorize(title="c", k=1).categories[0].label == "Title > c"


def test_stopping_server_answers_what_is_in_flight_and_refuses_the_rest(
    own_server: TritonServer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with ShelfwiseClient(own_server.url, timeout=60) as client, ThreadPoolExecutor(2) as threads:
        in_flight = threads.submit(client.categorize, title=f"gate {gate}", k=1)
        wait_for(gate.with_suffix(".entered").exists)
        stopping = threads.submit(own_server.stop, 60)
        wait_for(lambda: not client.is_ready())
        with ends_within(0.3), pytest.raises(ServerUnavailable):
            client.categorize(title="a", timeout=0.3)
        gate.with_suffix(".open").touch()
        assert in_flight.result().categories[0].label == f"Title > gate {gate}"
        assert stopping.result() == 0


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Starts a server with options for TLS or header gating, as a deployer sets them."""
    servers = []

    def start(*options: str) -> TritonServer:
        server = TritonServer(
            REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, log_file=tmp_path / "log", triton_options=options
        )
        servers.append(server)
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(grace_seconds=0)


def test_gated_server_wants_its_header(guarded_server: Callable[..., TritonServer]) -> None:
    server = guarded_server("--grpc-restricted-protocol=inference,health:shelfwise-key=secret")
    with ShelfwiseClient(server.url) as client:
        with ends_within(0.2), pytest.raises(AccessDenied, match="triton-grpc-protocol-shelfwise-key"):
            client.categorize(title="a")
        with pytest.raises(AccessDenied):
            client.is_ready()
    with ShelfwiseClient(server.url, headers={"Triton-Grpc-Protocol-Shelfwise-Key": "secret"}) as client:
        assert client.is_ready()
        assert client.categorize(title="a", k=1).categories[0].label == "Title > a"


def test_encrypted_connection_needs_the_right_authority_and_key(
    guarded_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    for name, subject in (("server", "/CN=127.0.0.1"), ("client", "/CN=caller")):
        subprocess.run(
            f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj {subject} -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {name}.key -out {name}.crt".split(),
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    server = guarded_server(
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={tmp_path}/server.crt",
        f"--grpc-server-key={tmp_path}/server.key",
        f"--grpc-root-cert={tmp_path}/client.crt",
    )
    own = {"private_key": tmp_path / "client.key", "certificate_chain": tmp_path / "client.crt"}
    with ShelfwiseClient(server.url, tls=TLS(tmp_path / "server.crt", **own)) as client:
        assert client.categorize(title="a", k=1).categories[0].label == "Title > a"
    for tls in (None, TLS(), TLS(tmp_path / "server.crt"), TLS(tmp_path / "client.crt", **own)):
        refused = pytest.raises((ServerUnavailable, DeadlineExceeded))
        with ShelfwiseClient(server.url, tls=tls, timeout=0.5) as client, ends_within(0.5), refused:
            client.categorize(title="a")


def test_half_a_key_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="private_key and certificate_chain together"):
        ShelfwiseClient("127.0.0.1:1", tls=TLS(private_key=tmp_path / "client.key"))
    with pytest.raises(FileNotFoundError):
        ShelfwiseClient("127.0.0.1:1", tls=TLS(root_certificates=tmp_path / "absent.crt"))
