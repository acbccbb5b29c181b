"""One gRPC channel to a Triton server: deadlines that hold, retries that stay inside them, errors with a type.

Built on the stubs that tritonclient ships rather than on its InferenceServerClient: a request message is built once
and sent again as it is on a retry, a call in flight can be cancelled from another thread, and concurrent calls share
no state (in tritonclient 2.73 `async_infer` keeps its call in an attribute, which two threads can swap).
Back-off with full jitter follows Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from .errors import DeadlineExceeded, RequestCancelled, ServerUnavailable, error_for

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 1.0

_CHANNEL_OPTIONS = (
    # Images are large; what bounds a message is the client's own limits on images and batches, not gRPC's 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own reconnect back-off grows to 2 minutes; a restarted server should be found by the next retry.
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_SECONDS * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF_SECONDS * 1000)),
    # An attempt to connect to a host that never answers is given up after this, not after 20 s.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Finds a peer that vanished without closing its connection, 20 s after it was last heard. Pings are only sent while
    # calls wait, and at most two in a row without data, which stays below what Triton's default settings count as
    # abuse. Newer gRPC heeds the second timeout where another ping is already under way, with a default of a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # A name with several addresses, such as a headless Kubernetes Service, is used in turn; gRPC's default stays with
    # the first address that answers.
    ("grpc.lb_policy_name", "round_robin"),
    # Every client its own connection: gRPC would otherwise share one among equal channels of a process.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TLS:
    """How to encrypt the connection; `TLS()` alone trusts the certificate authorities that gRPC ships.

    Attributes:
        root_certificates: PEM file of the authorities to trust instead.
        private_key: PEM file of the client's own key, for servers that ask for one (mutual TLS).
        certificate_chain: PEM file of the certificates that belong to the key.
    """

    root_certificates: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            ValueError: a private key without its certificates, or the reverse.
            OSError: a file cannot be read.
        """
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("TLS needs private_key and certificate_chain together, or neither")
        roots, key, chain = (
            None if path is None else Path(path).read_bytes()
            for path in (self.root_certificates, self.private_key, self.certificate_chain)
        )
        return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


def checked_timeout(seconds: float) -> float:
    """The timeout itself.

    Raises:
        ValueError: it is not a positive, finite number of seconds: a call without an end is not offered.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"timeout must be a positive number of seconds, not {seconds!r}")
    return seconds


class Deadline:
    """The moment by which a call must have ended, however many requests it makes.

    Args:
        seconds: from now.

    Raises:
        ValueError: not a positive, finite number: a call without an end is not offered.
    """

    __slots__ = ("_started", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = checked_timeout(seconds)
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """Seconds that are left, 0 when it has passed."""
        return max(self.seconds - self.elapsed(), 0.0)


class Cancellation:
    """Cancels, from another thread, the calls that were started under it and the waits between their retries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._calls: set[Any] = set()

    def cancel(self) -> None:
        """Cancels what is in flight; whatever is started under it afterwards is cancelled at once."""
        self._cancelled.set()
        with self._lock:
            calls = tuple(self._calls)
        for call in calls:
            call.cancel()

    def invoke(self, rpc: Any, request: Any, *, timeout: float, metadata: Any) -> Any:
        """Runs one RPC to its end and returns its response.

        Raises:
            grpc.RpcError: the call failed.
            grpc.FutureCancelledError: it was cancelled here.
        """
        call = rpc.future(request, timeout=timeout, metadata=metadata)
        with self._lock:
            self._calls.add(call)
        try:
            if self._cancelled.is_set():
                call.cancel()
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)

    def wait(self, seconds: float) -> bool:
        """Waits at most so long for a cancellation; True when there was one."""
        return self._cancelled.wait(seconds)


class Transport:
    """A lazily connected channel; every method may be called from several threads at once.

    Args:
        url: "host:port" of the server's gRPC endpoint.
        tls: None sends in the clear.
        headers: sent with every request, as an authenticating proxy or Triton's restricted protocols want them.

    Raises:
        ValueError: the URL has a scheme or no port, or the TLS files do not belong together.
        OSError: a TLS file cannot be read.
    """

    def __init__(self, url: str, tls: TLS | None, headers: Mapping[str, str]) -> None:
        if "://" in url or ":" not in url:
            raise ValueError(f'url must be "host:port" of the gRPC endpoint, such as "127.0.0.1:8001", not {url!r}')
        self.url = url
        if tls is None:
            self._channel = grpc.insecure_channel(url, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(url, tls.credentials(), options=_CHANNEL_OPTIONS)
        # gRPC accepts lower-case header names only.
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._closed = False
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Closes the connection and cancels every call in flight on it."""
        self._closed = True
        self._channel.close()

    def call(
        self,
        rpc: Any,
        request: Any,
        deadline: Deadline,
        *,
        retry: bool = True,
        cancellation: Cancellation | None = None,
    ) -> Any:
        """Calls one RPC and returns its response message.

        The deadline covers everything: connecting, every attempt and the pauses between them. The server is told what
        is left of it, and drops what it has not begun by then. Only UNAVAILABLE is retried, that is, when
        there was no connection, the server is stopping or its queue is full; inference changes no state, so that a
        request which did reach the server may be repeated.

        Args:
            rpc: one of the methods of `stub`.
            request: its protobuf message.
            deadline: of this call, or of several that belong together.
            retry: False gives the answer of the first attempt, as health checks want it.
            cancellation: lets another thread cancel the call.

        Raises:
            ShelfwiseError: of the class that belongs to the gRPC status.
        """
        attempts = 0
        while True:
            attempts += 1
            try:
                if cancellation is None:
                    return rpc(request, timeout=deadline.remaining(), metadata=self._metadata)
                return cancellation.invoke(rpc, request, timeout=deadline.remaining(), metadata=self._metadata)
            except grpc.RpcError as failure:
                status, text = failure.code().name, failure.details()
            except grpc.FutureCancelledError:
                raise RequestCancelled("cancelled by the caller", status="CANCELLED") from None
            except ValueError as failure:
                if not self._closed:
                    raise
                raise RequestCancelled("this client is closed", status="CANCELLED") from failure

            error = error_for(status, text)
            if isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded(
                    f"no answer from {self.url} within {deadline.seconds:g} s ({text})", status=status
                )
            if not isinstance(error, ServerUnavailable):
                raise error
            backoff = random.uniform(0.0, min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1)))
            if not retry or backoff >= deadline.remaining():
                times = "once" if attempts == 1 else f"{attempts} times"
                message = f"{self.url}: {text} (tried {times} in {deadline.elapsed():.2f} s)"
                raise ServerUnavailable(message, status=status)
            if cancellation is None:
                time.sleep(backoff)
            elif cancellation.wait(backoff):
                raise RequestCancelled("cancelled by the caller", status="CANCELLED")
