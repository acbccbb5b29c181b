"""Any form in which a caller may hold an image, turned into the bytes of an image file.

Files travel as they are, since the server decodes them faster than a client could and sees their EXIF rotation. The
EXIF data of a Pillow image travel with it, sound or not, so that one rule, the server's, says what is upright.
Arrays become PNG (lossless) with zlib and numpy alone, so that the client needs no imaging library; rows are coded as
differences from the row above (the "Up" filter of the PNG specification, section 9.2), which at the fastest compression
level makes product photographs smaller by a sixth (224 pixels) to a half (900 pixels). Pillow images encode themselves.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    Image = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | PillowImage
else:
    Image = Any

MAX_IMAGE_BYTES = 20 * 2**20
"""Larger image files are refused here with the error that the server would answer, before they are sent."""
MAX_PIXELS = 25 * 10**6
"""Of an array or a Pillow image, which travel as PNG; the server takes larger photos as JPEG files."""

_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> grey, RGB, RGBA
_PILLOW_MODES_OF_PNG = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}
_PILLOW_NUMBERS = {"I", "F"}  # 32-bit grey values; converted to RGB, Pillow would clip them to 0..255


def encode_image(image: Image) -> bytes:
    """The bytes of an image file for any supported form of an image.

    Args:
        image: a path (str or os.PathLike); the bytes of an image file; a uint8 array [H, W, 3] in RGB, [H, W] or
            [H, W, 1] in grey or [H, W, 4] with straight alpha; or a Pillow image, whose EXIF rotation is applied.

    Raises:
        InvalidInput: the file cannot be read, the array has another shape or dtype, the type is none of these, or
            the file is larger than MAX_IMAGE_BYTES, or the array or Pillow image has more than MAX_PIXELS.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
    elif isinstance(image, (str, os.PathLike)):
        data = _read(Path(image))
    elif isinstance(image, np.ndarray):
        data = _png(image)
    elif _is_pillow(image):
        data = _png_by_pillow(image)
    else:
        raise InvalidInput(f"image must be a path, bytes, a uint8 array or a Pillow image, not {type(image).__name__}")
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidInput(f"image has {len(data)} bytes, the limit is {MAX_IMAGE_BYTES} ({MAX_IMAGE_BYTES >> 20} MiB)")
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as failure:  # ValueError: a name that no file can have
        reason = failure.strerror if isinstance(failure, OSError) else failure
        raise InvalidInput(f"image file {path}: {reason}") from failure


def _png(pixels: NDArray[Any]) -> bytes:
    channels = pixels.shape[-1] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in _PNG_COLOUR_TYPES or 0 in pixels.shape:
        raise InvalidInput(
            f"an image array must be uint8 [H, W, 3], [H, W] or [H, W, 4], not {pixels.dtype} {list(pixels.shape)}"
        )
    height, width = pixels.shape[:2]
    _check_pixels(height, width)
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = 2  # filter type "Up" in front of every row
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the specification wants it
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.data, level=1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def _is_pillow(image: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # whoever holds a Pillow image has imported it; the client never does
    return pillow is not None and isinstance(image, pillow.Image)


def _png_by_pillow(image: PillowImage) -> bytes:
    _check_pixels(image.height, image.width)
    try:
        exif = image.info.get("exif", b"")
        image.load()  # may turn a TIFF
        if image.mode in _PILLOW_NUMBERS:
            _check_numbers(image)
            image = image.convert("I;16")
        elif image.mode not in _PILLOW_MODES_OF_PNG:
            image = image.convert("RGB")
        encoded = io.BytesIO()
        image.save(encoded, "PNG", compress_level=1, exif=exif)
    except InvalidInput:
        raise
    except Exception as failure:  # Pillow reads lazily, and its plugins raise many types for a broken file
        raise InvalidInput(f"Pillow cannot encode the image: {failure}") from failure
    return encoded.getvalue()


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InvalidInput(f"an image of {width}x{height} pixels; at most {MAX_PIXELS} are taken: reduce it first")


def _check_numbers(image: PillowImage) -> None:
    """PNG holds whole numbers from 0 to 65535, and no two viewers agree on any others."""
    low, high = image.getextrema()
    if image.mode == "F" or low < 0 or high > 65535:  # type: ignore[operator]  # one band, one pair
        raise InvalidInput(
            f"a Pillow image of mode {image.mode} must hold whole numbers from 0 to 65535, not {low:g} to {high:g}: "
            "scale it to 8 bits first"
        )
