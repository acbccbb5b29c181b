"""How much of an image is taken, before any pixel is decoded: bytes, declared pixels, scans.

What decoding costs is known from the header. A baseline JPEG is decoded straight to a small size, so it may be large;
everything else lies in memory whole at least once, at up to the bytes per pixel below (measured, peak over start, with
pixels that a target of 224 leaves), and no file takes more than 300 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from .errors import ImageError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64 * 10**6
"""Of a baseline JPEG."""
MAX_WHOLE_PIXELS = {
    "progressive JPEG": 48_800_000,  # 6 bytes: the coefficients of all blocks. A phone's 8064 x 6048 is within
    "WEBP": 4096 * 4096,  # 16 bytes: two canvases, a copy, the picture
}
WHOLE_PIXELS = 25 * 10**6
"""Of a file of any other format; 4 to 11 bytes. What large shop systems take, 5000 x 5000, is within."""
MAX_SCANS = 100
"""Progressive JPEG: every scan walks over all pixels again; encoders write about ten."""
MAX_SCANNED_PIXELS = 10 * MAX_PIXELS
"""Scans x pixels."""

MAX_PARTS = 50_000
"""Segments or chunks, each of which is looked at here: a 20 MiB PNG in pieces of 8 KiB has 2,560."""
Part = TypeVar("Part")


def most_pixels(kind: str) -> int:
    """How many pixels are taken of an image of a kind: a format, or "progressive JPEG"."""
    return MAX_PIXELS if kind == "JPEG" else MAX_WHOLE_PIXELS.get(kind, WHOLE_PIXELS)


def check_pixels(kind: str, height: int, width: int) -> None:
    """Refuses a picture that declares no pixels, or more than are taken of its kind.

    Raises:
        ImageError: with the size and the limit.
    """
    if height < 1 or width < 1:
        raise ImageError(f"{kind} declares no pixels: {width}x{height}", "damaged", _format(kind))
    if height * width > most_pixels(kind):
        message = f"{kind} declares {width}x{height} pixels; at most {most_pixels(kind)} are taken"
        raise ImageError(message, "too large", _format(kind))


def check_scans(scans: int, height: int, width: int) -> None:
    """Refuses a progressive JPEG that would be walked over too often.

    Raises:
        ImageError: with the number of scans and the limit.
    """
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (height * width))
    if scans > most:
        message = f"progressive JPEG of {scans} scans; at most {most} are taken of {width}x{height} pixels"
        raise ImageError(message, "too large", "JPEG")


def counted(parts: Iterable[Part], format: str) -> Iterator[Part]:
    """The parts of a file, as long as they are no more than `MAX_PARTS`; then raises ImageError."""
    for number, part in enumerate(parts):
        if number == MAX_PARTS:
            raise ImageError(f"{format} in more than {MAX_PARTS} parts", "too large", format)
        yield part


def _format(kind: str) -> str:
    return kind.removeprefix("progressive ")
