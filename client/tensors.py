"""Tensors as Triton's gRPC protocol carries them: BYTES elements out, checked values in.

Answers are a few dozen numbers and names, and somebody waits for each: they are read into plain Python values. numpy
arrays of that size cost more to make than to use.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2

from .errors import ServerError

_FORMATS = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q", "BOOL": "?"}  # Triton's element type -> struct's


class Tensor(NamedTuple):
    """An output of an answer; `values` are row-major, BYTES elements are bytes."""

    shape: tuple[int, ...]
    values: Sequence[Any]


def bytes_tensor(elements: Iterable[bytes]) -> bytes:
    """Triton's wire form of a BYTES tensor: every element after its length as a little-endian uint32."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def output(response: service_pb2.ModelInferResponse, model: str, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """An output of an answer, of a shape in which None is any length.

    Raises:
        ServerError: it is missing, or has another shape or content: this is no Shelfwise server.
    """
    outputs = zip(response.outputs, response.raw_output_contents, strict=False)
    tensor, content = next((pair for pair in outputs if pair[0].name == name), (None, b""))
    if tensor is None:
        raise _unexpected(model, name, shape, "no such output")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(length not in (None, has) for length, has in zip(shape, found, strict=True)):
        raise _unexpected(model, name, shape, f"shape {list(found)}")
    datatype = tensor.datatype
    try:
        values = _elements(content) if datatype == "BYTES" else _numbers(datatype, content)
    except (KeyError, struct.error):
        values = ()
    if len(values) != math.prod(found):
        raise _unexpected(model, name, shape, f"{len(content)} bytes of {datatype or 'no type'} in it")
    return Tensor(found, values)


def _unexpected(model: str, name: str, shape: tuple[int | None, ...], found: str) -> ServerError:
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    return ServerError(f"the answer of {model!r} should have {name!r} of shape [{wanted}], but has {found}")


def _numbers(datatype: str, content: bytes) -> tuple[float, ...]:
    kind = _FORMATS[datatype]
    return struct.unpack(f"<{len(content) // struct.calcsize(kind)}{kind}", content)


def _elements(content: bytes) -> list[bytes]:
    """What `bytes_tensor` put together."""
    elements = []
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        at += 4 + length
        if at > len(content):
            raise struct.error("the last element is cut off")
        elements.append(content[at - length : at])
    return elements
