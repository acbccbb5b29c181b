"""HTTP as the wire: the same errors, deadlines and cancellations, against Triton and real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from client import (
    TLS,
    AccessDenied,
    AsyncShelfwiseClient,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    ShelfwiseClient,
    ShelfwiseError,
)
from serving.addresses import free_ports
from serving.server import TritonServer
from tests.triton_state import wait_for

from .test_faults import TOLERANCE, Link, address, ends_within, guarded_server, own_server, silent_socket  # noqa: F401


@pytest.mark.parametrize(
    ("title", "kind", "status", "text"),
    [
        ("refuse", InvalidInput, "INVALID_ARGUMENT", "row 0 is refused"),
        ("break", ServerError, "INTERNAL", "row 0 broke the model"),
    ],
)
def test_errors_are_those_of_grpc(
    scripted_server: TritonServer, title: str, kind: type[ShelfwiseError], status: str, text: str
) -> None:
    with ShelfwiseClient(scripted_server.http_url) as client, pytest.raises(kind) as caught:
        client.categorize(title=title)
    assert (type(caught.value), caught.value.status) == (kind, status)
    assert text in str(caught.value)


def test_model_that_is_not_served_is_not_found(scripted_server: TritonServer) -> None:
    with ShelfwiseClient(scripted_server.http_url) as client:
        with pytest.raises(ModelNotFound):
            client.server_metadata("match_colours")
        assert not client.is_ready("match_colours")
        assert client.is_ready()
        over_http = client.server_metadata()
        assert client.model_digests() == {"of this model"}
        with pytest.raises(ModelNotFound):
            client.model_digests("match_colours")
    with ShelfwiseClient(scripted_server.url) as client:
        assert over_http == client.server_metadata()
        assert client.model_digests() == {"of this model"}


def test_stream_answers_in_order_and_bad_rows_cost_only_themselves(scripted_server: TritonServer) -> None:
    titles = ["refuse" if number % 7 == 3 else f"title {number}" for number in range(50)]
    with ShelfwiseClient(scripted_server.http_url) as client:
        answers = list(client.categorize_many([(None, title) for title in titles], k=1))
    for title, answer in zip(titles, answers, strict=True):
        if title == "refuse":
            assert isinstance(answer, InvalidInput)
        else:
            assert not isinstance(answer, ShelfwiseError)
            assert answer.categories[0].label == f"Title > {title}"


def test_no_server_and_a_silent_one_end_within_the_deadline(silent_socket: socket.socket) -> None:  # noqa: F811
    (port,) = free_ports("127.0.0.1", 1)
    with ShelfwiseClient(f"http://127.0.0.1:{port}", timeout=0.5) as client, ends_within(0.5):
        with pytest.raises(ServerUnavailable, match=rf"127\.0\.0\.1:{port}.*tried \d+ times"):
            client.categorize(title="a")
    with ShelfwiseClient(f"http://{address(silent_socket)}", timeout=0.5) as client, ends_within(0.5):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
            client.categorize(title="a")


def test_answer_that_drips_ends_within_the_deadline(silent_socket: socket.socket) -> None:  # noqa: F811
    stop = threading.Event()

    def drip() -> None:
        connection, _ = silent_socket.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stop.wait(0.05):
                connection.sendall(b"x" * 2**16)

    thread = threading.Thread(target=drip)
    thread.start()
    with ShelfwiseClient(f"http://{address(silent_socket)}", timeout=0.4) as client, ends_within(0.4):
        with pytest.raises(DeadlineExceeded):
            client.categorize(title="a")
    stop.set()
    thread.join()


def test_port_of_another_protocol_is_said_so(scripted_server: TritonServer) -> None:
    with ShelfwiseClient(f"http://{scripted_server.url}", timeout=1.0) as client, ends_within(1.0):
        with pytest.raises(ShelfwiseError, match=scripted_server.url):
            client.categorize(title="a")


def test_restarted_server_is_found_again_on_a_kept_connection(own_server: TritonServer, tmp_path: Path) -> None:  # noqa: F811
    link = Link(own_server.http_url.removeprefix("http://"))
    with link.listening, ShelfwiseClient(f"http://{address(link.listening)}", timeout=20) as client:
        client.categorize(title="a", k=1)
        (connection,) = client._engine.endpoints.all[0].connection._idle  # type: ignore[attr-defined]
        connection.sock.shutdown(socket.SHUT_RDWR)  # what a restart looks like from here
        assert client.categorize(title="b", k=1).categories[0].label == "Title > b"


def test_closing_the_client_and_leaving_a_stream_hang_up(scripted_server: TritonServer, tmp_path: Path) -> None:
    gate, other = tmp_path / "gate", tmp_path / "other"
    client = ShelfwiseClient(scripted_server.http_url, timeout=30)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.categorize, title=f"gate {gate}")
        wait_for(gate.with_suffix(".entered").exists)
        client.close()
        with pytest.raises(RequestCancelled, match="closed"):
            waiting.result(timeout=10)
    gate.with_suffix(".open").touch()
    with ShelfwiseClient(scripted_server.http_url, timeout=30) as client:
        titles = ["first", f"gate {other}"]
        answers = client.categorize_many([(None, title) for title in titles], k=1, batch_size=1, in_flight=1)
        next(answers)
        wait_for(other.with_suffix(".entered").exists)
        answers.close()  # before the gate opens
    other.with_suffix(".open").touch()


def test_cancelled_task_hangs_up(scripted_server: TritonServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def ask() -> None:
        async with AsyncShelfwiseClient(scripted_server.http_url, timeout=30) as client:
            task = asyncio.create_task(client.categorize(title=f"gate {gate}"))
            await asyncio.to_thread(wait_for, gate.with_suffix(".entered").exists)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())  # ends before the gate opens
    gate.with_suffix(".open").touch()


def test_gated_server_wants_its_header(guarded_server: Callable[..., TritonServer]) -> None:  # noqa: F811
    server = guarded_server("--http-restricted-api=inference:shelfwise-key=secret")
    with ShelfwiseClient(server.http_url) as client:
        with ends_within(0.2), pytest.raises(AccessDenied):
            client.categorize(title="a")
    with ShelfwiseClient(server.http_url, headers={"shelfwise-key": "secret"}) as client:
        assert client.is_ready()
        assert client.categorize(title="a", k=1).categories[0].label == "Title > a"


class Gateway(Link):
    """Ends TLS in front of a server, as an ingress does."""

    def __init__(self, target: str, certificate: Path, key: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        super().__init__(target)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.listening.accept()
            except OSError:
                return
            with suppress(OSError):  # a client that does not trust us
                near = self.context.wrap_socket(plain, server_side=True)
                far = socket.create_connection(self.target)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink, self.cut), daemon=True).start()


def test_https_needs_the_right_authority(scripted_server: TritonServer, tmp_path: Path) -> None:
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        "-keyout server.key -out server.crt",
        shell=True,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    target = scripted_server.http_url.removeprefix("http://")
    gateway = Gateway(target, tmp_path / "server.crt", tmp_path / "server.key")
    url = f"https://{address(gateway.listening)}"
    with gateway.listening:
        with ShelfwiseClient(url, tls=TLS(tmp_path / "server.crt"), timeout=20) as client:
            assert client.categorize(title="a", k=1).categories[0].label == "Title > a"
        with ShelfwiseClient(url, timeout=1.0) as client, pytest.raises(ServerUnavailable, match="CERTIFICATE"):
            client.categorize(title="a")
    with pytest.raises(ValueError, match="https://"):
        ShelfwiseClient("http://127.0.0.1:1", tls=TLS())
