"""Two ways to wait, threads and asyncio, behind one face, so that the engine is written once.

The engine is coroutines. Under `Asyncio` they run as tasks. Under `Blocking` everything they await blocks the thread
instead of suspending, so that `finish` runs one to its end with a single step: no event loop, no second thread for a
plain call. What runs beside it, in streams and hedges, gets a thread and a `Scope` by which another can cancel it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import grpc

from .errors import RequestCancelled

Result = TypeVar("Result")


def finish(coroutine: Any) -> Any:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a coroutine suspended where nothing could resume it")


class Scope:
    """Cancels, from another thread, what was begun under it: calls, sockets, waits and the scopes within."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._begun: set[Callable[[], Any]] = set()

    def cancel(self) -> None:
        """Whatever is begun under it afterwards is cancelled at once."""
        self._cancelled.set()
        with self._lock:
            begun = tuple(self._begun)
        for cancel in begun:
            cancel()

    def begin(self, cancel: Callable[[], Any]) -> None:
        with self._lock:
            self._begun.add(cancel)
        if self._cancelled.is_set():
            cancel()

    def end(self, cancel: Callable[[], Any]) -> None:
        with self._lock:
            self._begun.discard(cancel)

    def cancelled(self, within: float = 0.0) -> bool:
        """Whether it is, or will be within so many seconds."""
        return self._cancelled.wait(within)


scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("scope", default=None)
"""Under which the current thread works; None in the caller's own."""


class _ThreadTask:
    def __init__(self, executor: ThreadPoolExecutor, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._scope = Scope()
        outer = scope.get()
        if outer is not None:
            outer.begin(self._scope.cancel)
        context = contextvars.copy_context()  # what the caller's headers are read from
        context.run(scope.set, self._scope)
        self.future = executor.submit(context.run, finish, coroutine)

    def cancel(self) -> None:
        self._scope.cancel()

    def done(self) -> bool:
        return self.future.done()

    def result(self) -> Any:
        return self.future.result()


class Blocking:
    """Waits by blocking the thread; `start` takes another."""

    grpc = grpc

    def __init__(self) -> None:
        # As many as there are tasks at a time, whose number the streams bound; idle ones are used again.
        self._threads = ThreadPoolExecutor(10_000, thread_name_prefix="shelfwise-client")

    async def unary(self, rpc: Any, request: Any, **options: Any) -> Any:
        """The response of one gRPC call; a cancellation reaches the server."""
        within = scope.get()
        if within is None:
            return rpc(request, **options)
        call = rpc.future(request, **options)
        within.begin(call.cancel)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise RequestCancelled("cancelled by the caller", status="CANCELLED") from None
        finally:
            within.end(call.cancel)

    async def blocking(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a function that reads files, computes or talks over a socket."""
        return function(*arguments)

    async def sleep(self, seconds: float) -> None:
        within = scope.get()
        if within is None:
            time.sleep(seconds)
        elif within.cancelled(seconds):
            raise RequestCancelled("cancelled by the caller", status="CANCELLED")

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Runs it beside the caller."""
        return _ThreadTask(self._threads, coroutine)

    async def wait(self, tasks: Iterable[Any], seconds: float | None = None) -> None:
        """Until the first of them is done, or so many seconds have passed."""
        futures = [task.future for task in tasks]
        concurrent.futures.wait(futures, seconds, concurrent.futures.FIRST_COMPLETED)

    async def end(self, tasks: Iterable[Any]) -> None:
        """Cancels tasks and waits for their end."""
        ended = list(tasks)
        for task in ended:
            task.cancel()
        concurrent.futures.wait([task.future for task in ended])


class Asyncio:
    """Waits by suspending the coroutine; `start` makes another task of the running loop. See `Blocking`."""

    grpc = grpc.aio

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(10_000, thread_name_prefix="shelfwise-client")

    async def unary(self, rpc: Any, request: Any, **options: Any) -> Any:
        return await rpc(request, **options)

    async def blocking(self, function: Callable[..., Result], *arguments: Any) -> Result:
        within = Scope()
        context = contextvars.copy_context()
        context.run(scope.set, within)
        try:
            return await asyncio.wrap_future(self._threads.submit(context.run, function, *arguments))
        except asyncio.CancelledError:
            within.cancel()
            raise

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        return asyncio.ensure_future(coroutine)

    async def wait(self, tasks: Iterable[Any], seconds: float | None = None) -> None:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def end(self, tasks: Iterable[Any]) -> None:
        ended = list(tasks)
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


Runtime: TypeAlias = Blocking | Asyncio
Task: TypeAlias = _ThreadTask | asyncio.Future[Any]
