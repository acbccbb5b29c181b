"""PNG and WebP files without all that no pixel depends on, so that nothing there can keep a picture from being shown.

Both are chunks in a row. Those of the pixels are copied as they stand, for the decoder to judge; orientation and colour
profile are read from theirs, if they can be; text, times, thumbnails and what is unknown are left out, whole, oversized
or broken. As libpng does it (PNG specification 5.4: an ancillary chunk in error is no reason to refuse); a chunk with a
wrong checksum says nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .colour_profile import MAX_PROFILE
from .limits import counted
from .orientation import UPRIGHT, exif_orientation

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
GREY, COLOUR, PALETTE = b"\0", b"\2", b"\3"  # the header's colour type
WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
WEBP_METADATA_FLAGS = 0x2C  # of VP8X: profile, EXIF, XMP


@dataclass(frozen=True)
class Bare:
    """A file without what no pixel depends on, and what was read there."""

    data: bytes
    orientation: int = UPRIGHT
    profile: bytes | None = None


def bare_png(data: bytes) -> Bare:
    """A PNG file reduced to its critical chunks and a sound tRNS; trailing bytes go, a missing IEND comes."""
    kept, palette, orientation, profile = [PNG_SIGNATURE], 0, UPRIGHT, None
    pixels = False
    for name, body, whole in counted(_png_chunks(data), "PNG"):
        if name == b"IEND":
            break
        if not name[0] & 0x20:  # critical: upper case
            kept.append(whole)
            pixels |= name == b"IDAT"
            palette = len(body) // 3 if name == b"PLTE" else palette
        elif int.from_bytes(whole[-4:], "big") != zlib.crc32(body, zlib.crc32(name)):
            continue
        elif name == b"tRNS" and not pixels and _fits_colours(body, data[25:26], palette):
            kept.append(whole)
        elif name == b"eXIf":
            orientation = exif_orientation(body) if orientation == UPRIGHT else orientation
        elif name == b"iCCP":
            profile = profile or _inflated(body)
    return Bare(b"".join([*kept, PNG_END]), orientation, profile)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, body and all of each chunk. What is no chunk any more, or none that is whole, comes last, as critical."""
    at = len(PNG_SIGNATURE)
    while at < len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if stop > len(data) or not name.isalpha():
            if not name[:1].islower():
                yield b"IDAT", b"", data[at:]
            return
        yield name, data[at + 8 : stop - 4], data[at:stop]
        at = stop


def _fits_colours(transparency: bytes, colour_type: bytes, palette: int) -> bool:
    if colour_type == PALETTE:
        return 0 < len(transparency) <= palette
    return len(transparency) == {GREY: 2, COLOUR: 6}.get(colour_type)


def _inflated(body: bytes) -> bytes | None:
    """The profile of an iCCP chunk: name, 0, method 0, zlib data."""
    _, _, packed = body.partition(b"\0")
    if packed[:1] != b"\0":
        return None
    try:
        return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE)
    except zlib.error:
        return None


def bare_webp(data: bytes) -> Bare:
    """A WebP file reduced to the chunks of its pixels."""
    kept: list[bytes] = []
    orientation, profile = UPRIGHT, None
    for name, body, whole in counted(_webp_chunks(data), "WEBP"):
        if name == b"VP8X" and body:
            kept.append(whole[:8] + bytes([whole[8] & ~WEBP_METADATA_FLAGS]) + whole[9:])
        elif name in WEBP_PIXELS:
            kept.append(whole)
        elif name == b"EXIF":
            orientation = exif_orientation(body)
        elif name == b"ICCP":
            profile = body
    bare = b"".join(kept)
    return Bare(b"RIFF" + struct.pack("<I", 4 + len(bare)) + b"WEBP" + bare, orientation, profile)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, body and all of each chunk with its padding; the last may be cut."""
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 9 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        stop = at + 8 + size + size % 2
        yield data[at : at + 4], data[at + 8 : min(end, at + 8 + size)], data[at : min(end, stop)]
        at = stop
