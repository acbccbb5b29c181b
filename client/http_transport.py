"""The same requests over HTTP/1.1, for networks that let no HTTP/2 through: Triton's binary tensor extension.

The messages stay those of the gRPC protocol and are carried as JSON with the tensors' bytes behind it, by the standard
library alone, on connections that are kept. Cancelling hangs up; unlike gRPC, that need not reach what the server has
already queued. Source: https://docs.nvidia.com/deeplearning/triton-inference-server, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import time
import zlib
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from .errors import RequestCancelled, ServerError, error_for
from .runtime import Runtime, scope
from .transport import TLS, Headers

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "UNAVAILABLE",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_COMPRESS = {"gzip": lambda body: gzip.compress(body, 1), "deflate": lambda body: zlib.compress(body, 1)}
_LENGTH_OF_JSON = "Inference-Header-Content-Length"
_CHUNK = 2**16


class HttpConnection:
    """Kept connections to "http://host:port" or "https://host:port"; as many as there are requests at a time.

    Raises:
        OSError: a TLS file cannot be read.
    """

    def __init__(self, url: str, tls: TLS | None, compression: str | None, runtime: Runtime) -> None:
        self.url = url
        self._address = urlsplit(url)
        self._runtime = runtime
        self._compression = compression
        self._context = _context(tls or TLS()) if self._address.scheme == "https" else None
        self._idle: list[http.client.HTTPConnection] = []
        self._used: set[http.client.HTTPConnection] = set()
        self._closed = False

    async def send(self, method: str, request: Any, seconds: float, headers: Headers) -> Any:
        return await self._runtime.blocking(self._send, method, request, time.monotonic() + seconds, headers)

    async def close(self) -> None:
        self._closed = True
        for connection in [*self._idle, *self._used]:
            _hang_up(connection)

    def _send(self, method: str, request: Any, end: float, headers: Headers) -> Any:
        if self._closed:
            raise RequestCancelled("this client is closed", status="CANCELLED")
        if method == "ModelInfer":
            length, body = _to_http(request)
            extra = {_LENGTH_OF_JSON: str(length), "Content-Type": "application/octet-stream"}
            if self._compression is not None:
                body = _COMPRESS[self._compression](body)
                extra["Content-Encoding"] = self._compression
            path = f"/v2/models/{quote(request.model_name)}/infer"
            status, answered, content = self._exchange("POST", path, body, dict(headers) | extra, end)
            _check(status, content)
            return _from_http(content, answered.get(_LENGTH_OF_JSON))
        if method == "ModelReady":
            path = f"/v2/models/{quote(request.name)}/ready"
            status, _, content = self._exchange("GET", path, None, dict(headers), end)
            if status in (401, 403):
                _check(status, content)
            return service_pb2.ModelReadyResponse(ready=status == 200)
        if method == "ModelConfig":
            path = f"/v2/models/{quote(request.name)}/config"
            status, _, content = self._exchange("GET", path, None, dict(headers), end)
            _check(status, content)
            response = service_pb2.ModelConfigResponse()
            json_format.Parse(content, response.config, ignore_unknown_fields=True)
            return response
        path = f"/v2/models/{quote(request.name)}" if method == "ModelMetadata" else "/v2"
        status, _, content = self._exchange("GET", path, None, dict(headers), end)
        _check(status, content)
        return json_format.Parse(content, getattr(service_pb2, f"{method}Response")(), ignore_unknown_fields=True)

    def _exchange(
        self, verb: str, path: str, body: bytes | None, headers: dict[str, str], end: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self._idle.pop() if self._idle else self._connection()
        within = scope.get()

        def hang_up() -> None:
            _hang_up(connection)

        if within is not None:
            within.begin(hang_up)
        self._used.add(connection)
        try:
            _limit(connection, end)
            connection.request(verb, path, body, headers)
            _limit(connection, end)
            response = connection.getresponse()
            chunks = []
            while chunk := response.read(_CHUNK):
                chunks.append(chunk)
                _limit(connection, end)
            if not self._closed and not response.will_close:
                self._idle.append(connection)
            return response.status, response.headers, b"".join(chunks)
        except (OSError, http.client.HTTPException) as failure:
            connection.close()
            if self._closed or (within is not None and within.cancelled()):
                text = "this client is closed" if self._closed else "cancelled by the caller"
                raise RequestCancelled(text, status="CANCELLED") from None
            status = "DEADLINE_EXCEEDED" if isinstance(failure, TimeoutError) else "UNAVAILABLE"
            raise error_for(status, str(failure) or type(failure).__name__) from None
        finally:
            self._used.discard(connection)
            if within is not None:
                within.end(hang_up)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, context=self._context)
        return http.client.HTTPConnection(host, port)


def _context(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.root_certificates)
    if tls.certificate_chain is not None:
        context.load_cert_chain(tls.certificate_chain, tls.private_key)
    return context


def _limit(connection: http.client.HTTPConnection, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    connection.timeout = left
    if connection.sock is not None:
        connection.sock.settimeout(left)


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Also wakes a thread that waits for an answer on it."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _check(status: int, content: bytes) -> None:
    if status == 200:
        return
    try:
        text = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        text = f"HTTP status {status}: {content[:200].decode(errors='replace')}"
    raise error_for(_STATUS.get(status, "UNKNOWN"), text)


def _to_http(request: service_pb2.ModelInferRequest) -> tuple[int, bytes]:
    """Length of the JSON in front, and the whole body."""
    contents = list(request.raw_input_contents)
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(content)},
        }
        for tensor, content in zip(request.inputs, contents, strict=True)
    ]
    outputs = [{"name": tensor.name, "parameters": {"binary_data": True}} for tensor in request.outputs]
    parameters = {"timeout": request.parameters["timeout"].int64_param}
    header = json.dumps({"id": request.id, "parameters": parameters, "inputs": inputs, "outputs": outputs}).encode()
    return len(header), b"".join([header, *contents])


def _from_http(content: bytes, length: str | None) -> service_pb2.ModelInferResponse:
    try:
        at = int(length) if length is not None else len(content)
        answer = json.loads(content[:at])
        response = service_pb2.ModelInferResponse(model_name=answer["model_name"])
        for tensor in answer["outputs"]:
            size = tensor["parameters"]["binary_data_size"]
            response.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
            response.raw_output_contents.append(content[at : at + size])
            at += size
    except (ValueError, KeyError, TypeError) as failure:
        raise ServerError(f"the answer is not one of Triton's binary tensor extension: {failure!r}") from failure
    return response
