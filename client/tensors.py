"""Tensors as Triton's gRPC protocol carries them: BYTES elements out, checked numpy arrays in."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from tritonclient.grpc import InferResult

from .errors import ServerError


def bytes_tensor(elements: Iterable[bytes]) -> bytes:
    """Triton's wire form of a BYTES tensor: every element after its length as a little-endian uint32."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def output(result: InferResult, model: str, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An output of an answer, of a shape in which None is any length.

    Raises:
        ServerError: it is missing or has another shape: this is no Shelfwise server.
    """
    tensor = result.as_numpy(name)
    pairs = () if tensor is None else zip(shape, tensor.shape, strict=False)
    if tensor is not None and tensor.ndim == len(shape) and all(wanted in (None, found) for wanted, found in pairs):
        return tensor
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    found = "no such output" if tensor is None else f"shape {list(tensor.shape)}"
    raise ServerError(f"the answer of {model!r} should have {name!r} of shape [{wanted}], but has {found}")
