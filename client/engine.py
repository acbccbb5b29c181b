"""One request to its end, for any call: deadline, retries, hedging, the choice of a server, ids for tracing.

A call has one deadline, and nothing lives longer: connecting, all attempts and the pauses between them. Only failures
that mean "not now" are tried again; inference changes no state, so that a request which did arrive may be repeated.
Back-off with full jitter follows Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015; hedging Dean
and Barroso, "The Tail at Scale", CACM 2013.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from .call import Answer, Call, Row
from .endpoints import Endpoint, Endpoints
from .errors import DeadlineExceeded, ModelNotFound, ServerUnavailable, ShelfwiseError
from .results import ServerMetadata
from .runtime import Runtime, Task
from .shared_memory import SharedMemory
from .transport import Headers

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 1.0
MAX_TIMEOUT_SECONDS = 24 * 60 * 60.0


def checked_seconds(seconds: float, name: str = "timeout") -> float:
    """The seconds themselves.

    Raises:
        ValueError: they are no number, not positive or more than a day: a call without an end is not offered.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ValueError(f"{name} must be a positive number of seconds, at most a day, not {seconds!r}")
    return float(seconds)


class Deadline:
    """The moment by which something must have ended, however many requests it makes.

    Args:
        seconds: from now.

    Raises:
        ValueError: see `checked_seconds`.
    """

    __slots__ = ("_started", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = checked_seconds(seconds)
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """Seconds that are left, 0 when it has passed."""
        return max(self.seconds - self.elapsed(), 0.0)


@dataclass
class Engine:
    """What all calls of a client share.

    Attributes:
        hedge_after: seconds after which a request that is not answered is sent a second time; None never does.
        headers: gives those of a request.
    """

    runtime: Runtime
    endpoints: Endpoints
    timeout: float
    hedge_after: float | None
    headers: Callable[[], Mapping[str, str]]
    shared_memory: SharedMemory | None = None

    async def ask(self, call: Call[Answer], item: Any, timeout: float | None) -> Answer:
        """The answer about one item; raises ShelfwiseError."""
        deadline = self.deadline(timeout)
        row = await self.runtime.blocking(call.encode, item)
        return (await self.infer(call, [row], deadline))[0]

    async def infer(self, call: Call[Answer], rows: list[Row], deadline: Deadline) -> list[Answer]:
        """The answers about rows of equal lengths, in one request; raises ShelfwiseError."""
        request = call.request(rows)
        request.id = os.urandom(16).hex()
        # Triton heeds this where it forgets a cancelled call: what waits in a queue for longer is not computed.
        request.parameters["timeout"].int64_param = max(1, int(1e6 * deadline.remaining()))
        if self.shared_memory is None:
            response = await self.send("ModelInfer", request, deadline)
        else:
            response = await self.shared_memory.infer(request, deadline)
        return call.answers(response, rows)

    def deadline(self, timeout: float | None) -> Deadline:
        """Of a call that begins now."""
        return Deadline(self.timeout if timeout is None else timeout)

    async def send(self, method: str, request: Any, deadline: Deadline) -> Any:
        """The response to one request, tried again until the deadline; raises ShelfwiseError."""
        request_id = getattr(request, "id", "") or os.urandom(16).hex()
        headers = self.request_headers(request_id)
        tried: set[Endpoint] = set()
        attempts = 0
        try:
            while True:
                attempts += 1
                known = len(tried)
                try:
                    return await self._attempt(method, request, deadline, headers, tried)
                except ServerUnavailable as error:
                    failure = error
                if known < len(tried) < len(self.endpoints.all):
                    continue  # at once: a server that was not tried may be well
                backoff = random.uniform(0.0, min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1)))
                if backoff >= deadline.remaining():
                    times = "once" if attempts == 1 else f"{attempts} times"
                    message = f"{failure} (tried {times} in {deadline.elapsed():.2f} s)"
                    raise ServerUnavailable(message, status=failure.status)
                await self.runtime.sleep(backoff)
        except ShelfwiseError as error:
            error.request_id = request_id
            raise

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        """Whether one of the servers says that a model is ready; each is asked once."""
        deadline, headers = self.deadline(timeout), self.request_headers(os.urandom(16).hex())
        request = service_pb2.ModelReadyRequest(name=model)
        for place, endpoint in enumerate(self.endpoints.all):
            seconds = deadline.remaining() / (len(self.endpoints.all) - place)
            with suppress(ServerUnavailable, DeadlineExceeded, ModelNotFound):
                if (await endpoint.connection.send("ModelReady", request, seconds, headers)).ready:
                    return True
        return False

    async def server_metadata(self, model: str, timeout: float | None) -> ServerMetadata:
        """Who answers; raises ShelfwiseError."""
        deadline = self.deadline(timeout)
        server = await self.send("ServerMetadata", service_pb2.ServerMetadataRequest(), deadline)
        served = await self.send("ModelMetadata", service_pb2.ModelMetadataRequest(name=model), deadline)
        return ServerMetadata(server.name, server.version, tuple(served.versions))

    async def model_digests(self, model: str, timeout: float | None) -> set[str]:
        """What the servers that answer now say of a model, one of them at least; raises ShelfwiseError."""
        deadline, headers = self.deadline(timeout), self.request_headers(os.urandom(16).hex())
        request = service_pb2.ModelConfigRequest(name=model)
        responses = []
        for place, endpoint in enumerate(self.endpoints.all):
            seconds = deadline.remaining() / (len(self.endpoints.all) - place)
            with suppress(ServerUnavailable, DeadlineExceeded):
                responses.append(await endpoint.connection.send("ModelConfig", request, seconds, headers))
        responses = responses or [await self.send("ModelConfig", request, deadline)]
        return {response.config.parameters["digest"].string_value for response in responses}

    async def close(self) -> None:
        """Ends what is in flight with RequestCancelled."""
        if self.shared_memory is not None:
            await self.shared_memory.close(Deadline(1.0))
        for endpoint in self.endpoints.all:
            await endpoint.connection.close()

    def request_headers(self, request_id: str) -> Headers:
        """The caller's, and a W3C traceparent of its own where the caller gives none; gRPC wants lower case."""
        headers = {name.lower(): value for name, value in self.headers().items()}
        headers.setdefault("traceparent", f"00-{request_id}-{os.urandom(8).hex()}-01")
        return tuple(headers.items())

    async def _attempt(
        self, method: str, request: Any, deadline: Deadline, headers: Headers, tried: set[Endpoint]
    ) -> Any:
        first = self._send_once(method, request, deadline, headers, tried)
        if self.hedge_after is None or self.hedge_after >= deadline.remaining():
            return await first
        tasks: list[Task] = [self.runtime.start(first)]
        try:
            await self.runtime.wait(tasks, self.hedge_after)
            if not tasks[0].done():
                tasks.append(self.runtime.start(self._send_once(method, request, deadline, headers, tried)))
            while True:
                await self.runtime.wait(tasks)
                done = next(task for task in tasks if task.done())
                try:
                    return done.result()
                except ServerUnavailable:
                    tasks.remove(done)
                    if not tasks:
                        raise
        finally:
            await self.runtime.end(tasks)

    async def _send_once(
        self, method: str, request: Any, deadline: Deadline, headers: Headers, tried: set[Endpoint]
    ) -> Any:
        endpoint = self.endpoints.choose(tried)
        tried.add(endpoint)
        url = endpoint.connection.url
        with self.endpoints.watched(endpoint):
            try:
                return await endpoint.connection.send(method, request, deadline.remaining(), headers)
            except DeadlineExceeded as error:
                text = f"no answer from {url} within {deadline.seconds:g} s ({error})"
                raise DeadlineExceeded(text, status=error.status) from None
            except ServerUnavailable as error:
                raise ServerUnavailable(f"{url}: {error}", status=error.status) from None
