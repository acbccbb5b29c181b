"""JPEG by libjpeg-turbo with DCT scaling: a large photo is decoded at the smallest n/8 that covers what is wanted.

The decoder stops at its first complaint. Most complaints are of no consequence to the picture, so a file that is
refused gets a second try, rebuilt from its segments: without metadata, without stray bytes between segments, without
what lies behind the end of the image (a motion photo's film, say), and with an end where it has none. What is
complained of then is missing or damaged picture data, and stays refused. Sources: ITU-T T.81 annex B; ICC.1 annex B.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageChops

from .colour_profile import to_srgb
from .errors import ImageError
from .limits import check_pixels, check_scans, counted
from .orientation import UPRIGHT, exif_orientation

START, END, SCAN = 0xD8, 0xD9, 0xDA
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
JFIF, EXIF, ICC, ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
METADATA = {*range(0xE0, 0xF0), 0xFE}
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # no fill bytes, no restarts, which are part of a scan
NOT_IN_IMAGE = {START, END, *range(0x01, 0xC0), *range(0xF0, 0xFE)}
PLAIN_JFIF = bytes.fromhex("ffe000104a46494600010100000100010000")
ADOBE_TRANSFORM = 15  # where in an Adobe segment, marker and length included, the kind of colours is named


@dataclass
class Header:
    """What a JPEG says before its first scan."""

    progressive: bool = False
    orientation: int = UPRIGHT
    adobe: bool = False
    profile_parts: dict[int, bytes] = field(default_factory=dict)
    profile_count: int = 0

    @property
    def profile(self) -> bytes | None:
        """The ICC profile, where all its segments are there."""
        parts = [self.profile_parts.get(number, b"") for number in range(1, self.profile_count + 1)]
        return b"".join(parts) if parts and all(parts) else None


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file whose header was read: its size in pixels as stored, and whether it holds ink, not light."""

    data: bytes
    header: Header
    height: int
    width: int
    cmyk: bool


def read_header(data: bytes) -> Header:
    """Reads the segments in front of the first scan; what is broken is passed over."""
    header, exif = Header(), False
    for marker, segment in counted(_segments(data, stop_at_scan=True), "JPEG"):
        if marker in FRAMES:
            header.progressive = marker in PROGRESSIVE
        elif marker == ADOBE and segment[4:9] == b"Adobe":
            header.adobe = True
        elif marker == EXIF and not exif and segment[4:10] == b"Exif\0\0":
            exif, header.orientation = True, exif_orientation(segment[4:])
        elif marker == ICC and segment[4:16] == b"ICC_PROFILE\0" and len(segment) > 18:
            header.profile_parts.setdefault(segment[16], segment[18:])
            header.profile_count = segment[17]
    return header


def open_jpeg(data: bytes) -> Jpeg | None:
    """Reads the header of a JPEG and checks what it declares; None for one that this decoder has no name for.

    Raises:
        ImageError: too many pixels, scans or segments.
    """
    header = read_header(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # damaged, or an unusual chroma subsampling
        return None
    check_pixels("progressive JPEG" if header.progressive else "JPEG", height, width)
    if header.progressive:
        check_scans(sum(marker == SCAN for marker, _ in counted(_segments(data), "JPEG")), height, width)
    return Jpeg(data, header, height, width, colours in ("CMYK", "YCCK"))


def decode_jpeg(jpeg: Jpeg, height: int, width: int) -> Image.Image:
    """Decodes an opened JPEG to a size: RGB in sRGB, not turned.

    Raises:
        ImageError: picture data are damaged or missing.
    """
    options: dict[str, Any] = {"colorspace": "CMYK" if jpeg.cmyk else "RGB", "min_height": height, "min_width": width}
    try:
        pixels = _decode(jpeg.data, options)
    except ValueError as error:
        message = f"damaged or truncated JPEG, {len(jpeg.data)} bytes: {error}"
        raise ImageError(message, "damaged", "JPEG") from error
    image = Image.fromarray(pixels, mode="CMYK" if jpeg.cmyk else None)
    if jpeg.cmyk and jpeg.header.adobe:
        image = ImageChops.invert(image)  # Adobe's programs write how much light, not how much ink
    return to_srgb(_resized(image, height, width), jpeg.header.profile).convert("RGB")


def _resized(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    if image.width < width or image.height < height:
        return image.resize((width, height), Image.Resampling.BICUBIC)
    # The scaled DCT has filtered already and leaves a small factor: half the taps give a picture as close to the
    # bicubic one of the whole photo (0.49/255 for 0.48/255). BOX, the mean of the area, is faster still, but at 1.3.
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _decode(data: bytes, options: dict[str, Any]) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError:
        bare = _bare(data)
        try:
            return simplejpeg.decode_jpeg(bare, **options)
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise
            # All picture data were read, or that would have been the complaint; the bytes that follow them are none.
            return simplejpeg.decode_jpeg(bare, strict=False, **options)


def _bare(data: bytes) -> bytes:
    """The file from what its pixels depend on alone."""
    kept = [b"\xff\xd8", PLAIN_JFIF]
    for marker, segment in _segments(data):
        if marker == ADOBE and segment[4:9] == b"Adobe":
            del kept[1:2]  # one or the other, or the decoder believes in JFIF
            kept.append(segment)
        elif marker not in METADATA:
            kept.append(segment)
    return b"".join([*kept, b"\xff\xd9"])


def _segments(data: bytes, *, stop_at_scan: bool = False) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of every segment between start and end of the image, the data of a scan with its header."""
    found = MARKER.search(data, 2)
    while found:
        at, marker = found.start(), data[found.start() + 1]
        if marker in NOT_IN_IMAGE or (marker == SCAN and stop_at_scan):
            return
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found = MARKER.search(data, stop)
        if marker == SCAN:
            stop = found.start() if found else len(data)
        yield marker, data[at:stop]
