"""One gRPC channel to a Triton server: how it connects, and the errors of its calls as exceptions with a type.

Built on the stubs that tritonclient ships rather than on its InferenceServerClient: a request message is built once
and sent again as it is on a retry, a call in flight can be cancelled from another thread, and concurrent calls share
no state (in tritonclient 2.73 `async_infer` keeps its call in an attribute, which two threads can swap).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2_grpc

from .errors import RequestCancelled, error_for
from .runtime import Runtime

Headers = Sequence[tuple[str, str]]
COMPRESSIONS = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

_CHANNEL_OPTIONS = (
    # Images are large; what bounds a message is the client's own limits on images and batches, not gRPC's 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own reconnect back-off grows to 2 minutes; a restarted server should be found by the next retry.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
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
    """How to encrypt the connection; `TLS()` alone trusts the public certificate authorities.

    Attributes:
        root_certificates: PEM file of the authorities to trust instead.
        private_key: PEM file of the client's own key, for servers that ask for one (mutual TLS).
        certificate_chain: PEM file of the certificates that belong to the key.
    """

    root_certificates: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("TLS needs private_key and certificate_chain together, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: a file cannot be read.
        """
        roots, key, chain = (
            None if path is None else Path(path).read_bytes()
            for path in (self.root_certificates, self.private_key, self.certificate_chain)
        )
        return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


class Connection(Protocol):
    """A way to one server, over gRPC or HTTP; made by the first request, and again when it is lost."""

    url: str

    async def send(self, method: str, request: Any, seconds: float, headers: Headers) -> Any:
        """The response to one request of Triton's gRPC protocol; raises ShelfwiseError."""

    async def close(self) -> None:
        """Cancels what is in flight."""


class GrpcConnection:
    """A lazily connected channel.

    Args:
        url: "host:port", or another target that gRPC understands.
        tls: None sends in the clear.
        compression: of requests, one of COMPRESSIONS.
        runtime: its flavour of gRPC is used.

    Raises:
        OSError: a TLS file cannot be read.
    """

    def __init__(self, url: str, tls: TLS | None, compression: str | None, runtime: Runtime) -> None:
        self.url = url
        self._runtime = runtime
        self._compression = COMPRESSIONS[compression]
        self._credentials = None if tls is None else tls.credentials()
        self._channel: Any = None
        self._stub: Any = None
        self._closed = False
        if runtime.grpc is grpc:
            self._connect()

    def _connect(self) -> None:
        """Later under asyncio: a channel belongs to the loop that runs when it is made."""
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(self.url)))]
        if self._credentials is None:
            self._channel = self._runtime.grpc.insecure_channel(self.url, options=options)
        else:
            self._channel = self._runtime.grpc.secure_channel(self.url, self._credentials, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self, method: str, request: Any, seconds: float, headers: Headers) -> Any:
        if self._stub is None:
            self._connect()
        options = {"timeout": seconds, "metadata": headers, "compression": self._compression}
        try:
            return await self._runtime.unary(getattr(self._stub, method), request, **options)
        except grpc.RpcError as failure:
            raise error_for(failure.code().name, failure.details()) from None
        except (ValueError, asyncio.CancelledError, grpc.aio.UsageError) as failure:
            if not self._closed:
                raise
            raise RequestCancelled("this client is closed", status="CANCELLED") from failure

    async def close(self) -> None:
        self._closed = True
        closing = self._channel and self._channel.close()
        if closing is not None:
            await closing


def is_loopback(url: str) -> bool:
    """Whether a target is this machine, to which no proxy of the environment leads."""
    address = url.rsplit("/", 1)[-1]
    if url.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
