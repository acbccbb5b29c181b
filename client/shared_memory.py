"""Large requests to a server on the same machine through system shared memory instead of the socket.

For batches of megabytes. A server refuses to register regions unless it was told otherwise; requests then travel as
usual. A region is a file of /dev/shm that is unlinked as soon as the server has mapped it, so that a crash leaves
nothing behind there; what a server still maps of a client that crashed bears its process number, and the next client
has it released.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from .errors import DeadlineExceeded, InvalidInput, ModelNotFound, ServerUnavailable, ShelfwiseError

logger = logging.getLogger(__name__)

LEAST_BYTES = 2**20
"""Smaller requests are sent as usual: there is nothing to gain."""

_FOLDER = Path("/dev/shm")
_UNKNOWN_REGION = "Unable to find shared memory region"


@dataclass(frozen=True, slots=True)
class _Region:
    name: str
    memory: mmap.mmap


class SharedMemory:
    """Regions registered with one server, each used by one request at a time.

    Args:
        send: sends (method, request, deadline) to that server and gives its response.
    """

    def __init__(self, send: Callable[[str, Any, Any], Awaitable[Any]]) -> None:
        self._send = send
        self._idle: list[_Region] = []
        self._registered: set[str] = set()
        self._allowed: bool | None = None if _FOLDER.is_dir() else False  # None: nobody has asked the server yet

    async def infer(self, request: service_pb2.ModelInferRequest, deadline: Any) -> Any:
        """The response to a request whose inputs are carried by a region, if it is worth it and allowed."""
        size = sum(map(len, request.raw_input_contents))
        region = None if self._allowed is False or size < LEAST_BYTES else await self._region(size, deadline)
        if region is None:
            return await self._send("ModelInfer", request, deadline)
        try:
            response = await self._send("ModelInfer", _carried(request, region), deadline)
        except (InvalidInput, ModelNotFound) as error:
            await self._release(region.name, deadline)
            if _UNKNOWN_REGION not in str(error):
                raise
            return await self._send("ModelInfer", request, deadline)  # the server was restarted
        except BaseException:
            await self._release(region.name, deadline)  # not used again: the server may still read it
            raise
        self._idle.append(region)
        return response

    async def close(self, deadline: Any) -> None:
        """Has the server release all regions."""
        for name in tuple(self._registered):
            await self._release(name, deadline)

    async def _region(self, size: int, deadline: Any) -> _Region | None:
        """An idle region that is large enough or a new one; None where server or machine has none to give."""
        for region in self._idle:
            if len(region.memory) >= size:
                self._idle.remove(region)
                return region
        name = f"{_prefix()}-{os.getpid()}-{os.urandom(8).hex()}"
        size = 1 << (size - 1).bit_length()
        file = _FOLDER / name
        try:
            if self._allowed is None:
                await self._sweep(deadline)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm is an error here, and a SIGBUS later
                memory = mmap.mmap(descriptor, size)
                register = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
                await self._send("SystemSharedMemoryRegister", register, deadline)
            finally:
                os.close(descriptor)
                file.unlink()
        except OSError as failure:
            logger.warning("no shared memory for a request of %d bytes, which is sent as usual: %s", size, failure)
            return None
        except (ServerUnavailable, DeadlineExceeded):
            raise
        except ShelfwiseError as refusal:
            self._allowed = False
            logger.info("this server takes no shared memory, requests are sent as usual: %s", refusal)
            return None
        self._allowed = True
        self._registered.add(name)
        return _Region(name, memory)

    async def _release(self, name: str, deadline: Any) -> None:
        self._registered.discard(name)
        with suppress(ShelfwiseError):  # a server that is gone has released it
            request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
            await self._send("SystemSharedMemoryUnregister", request, deadline)

    async def _sweep(self, deadline: Any) -> None:
        """Releases what is left of clients whose process is gone: regions of the server, files of /dev/shm."""
        status = await self._send("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest(), deadline)
        for name in filter(_is_abandoned, status.regions):
            await self._release(name, deadline)
        for file in _FOLDER.glob(f"{_prefix()}-*"):
            if _is_abandoned(file.name):
                file.unlink(missing_ok=True)


def _is_abandoned(name: str) -> bool:
    prefix, _, process = name.rpartition("-")[0].rpartition("-")
    return prefix == _prefix() and not Path("/proc", process).exists()


def _prefix() -> str:
    """Process numbers mean something within a namespace only."""
    return f"shelfwise-client-{Path('/proc/self/ns/pid').stat().st_ino}"


def _carried(request: service_pb2.ModelInferRequest, region: _Region) -> service_pb2.ModelInferRequest:
    carried = service_pb2.ModelInferRequest(
        model_name=request.model_name, id=request.id, inputs=request.inputs, outputs=request.outputs
    )
    carried.parameters["timeout"].CopyFrom(request.parameters["timeout"])
    at = 0
    for tensor, content in zip(carried.inputs, request.raw_input_contents, strict=True):
        region.memory[at : at + len(content)] = content
        tensor.parameters["shared_memory_region"].string_param = region.name
        tensor.parameters["shared_memory_offset"].int64_param = at
        tensor.parameters["shared_memory_byte_size"].int64_param = len(content)
        at += len(content)
    return carried
