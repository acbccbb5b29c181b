"""From an encoded image file to pixels: the one decoder of training and serving.

An image is shown as browsers show it: turned by its EXIF orientation, first frame, transparency on white, 16 bits
reduced to 8, colours as its ICC profile means them. Metadata never decide whether there is a picture: what is broken in
them is ignored, while the data of the pixels have to be whole. Bytes are not trusted: size and declared pixels are
checked before any pixel is decoded, and all that can go wrong arrives as `ImageError`.
The folder is copied whole next to the served Python models (export/system.py), so it imports only numpy, Pillow,
simplejpeg, pi-heif where it is installed, and itself; runs on numpy 1.26 and 2, Python 3.10 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from .errors import ImageError, Reason
from .geometry import fitted_size, letterbox
from .jpeg import decode_jpeg, open_jpeg
from .kinds import kind_of
from .limits import MAX_BYTES, MAX_PIXELS
from .orientation import SWAPS_AXES, upright
from .raster import FORMATS, decode_picture, open_picture

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageError",
    "OpenedImage",
    "Reason",
    "decode_image",
    "fitted_size",
    "is_readable",
    "open_image",
]
SCALED_SHARE = 8
"""A photo costs so many times less when it is decoded at a smaller scale."""


def decode_image(data: bytes, height: int, width: int) -> np.ndarray:
    """Decodes an image file into a picture of a given size, aspect ratio kept, centred, padded with white.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file; HEIC where pi-heif is installed.
        height: rows of the result, pixels.
        width: columns of the result, pixels.

    Returns:
        uint8 [height, width, 3], RGB. An image of exactly this size comes back as it is, without resampling.

    Raises:
        ImageError: the bytes are empty, more than `MAX_BYTES`, no image of these formats, damaged or truncated, or
            declare more pixels than `catalogue.images.limits` takes.
        ValueError: height or width is not positive.
    """
    return open_image(data).decode(height, width)


def is_readable(data: bytes) -> bool:
    """Whether `decode_image` takes an image file."""
    try:
        decode_image(data, 8, 8)
    except ImageError:
        return False
    return True


def open_image(data: bytes) -> OpenedImage:
    """Reads the header of an image file and checks it against the limits; decodes nothing.

    Raises:
        ImageError: as `decode_image`, for all that is seen before a pixel is decoded.
    """
    if not data:
        raise ImageError("empty image: 0 bytes", "empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"image of {len(data)} bytes; at most {MAX_BYTES} are taken", "too large", kind_of(data)[0])
    if data.startswith(b"\xff\xd8\xff") and (jpeg := open_jpeg(data)):
        weight = jpeg.height * jpeg.width // (1 if jpeg.header.progressive else SCALED_SHARE)
        return OpenedImage(jpeg.height, jpeg.width, jpeg.header.orientation, weight, partial(decode_jpeg, jpeg))
    picture = open_picture(data)
    height, width = picture.image.height, picture.image.width
    return OpenedImage(height, width, picture.orientation, height * width, partial(decode_picture, picture))


@dataclass(frozen=True)
class OpenedImage:
    """An image file whose header was read.

    Attributes:
        height, width: pixels as stored.
        orientation: how they have to be turned, as EXIF numbers it.
        weight: what decoding costs, in pixels that have to be computed: all of them, or an eighth where the decoder
            works at a smaller scale. 1,000,000 take about 10 to 25 ms and up to 16 MB for that time.
    """

    height: int
    width: int
    orientation: int
    weight: int
    _decoded: Callable[[int, int], Image.Image]

    def decode(self, height: int, width: int) -> np.ndarray:
        """The picture as `decode_image` returns it; once. Raises ImageError and ValueError likewise."""
        if height < 1 or width < 1:
            raise ValueError(f"target size {height}x{width} is not positive")
        if self.orientation in SWAPS_AXES:
            stored = fitted_size(self.height, self.width, width, height)
        else:
            stored = fitted_size(self.height, self.width, height, width)
        return letterbox(upright(np.asarray(self._decoded(*stored)), self.orientation), height, width)
