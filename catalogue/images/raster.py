"""Everything but the usual JPEG, by Pillow: PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, and JPEGs of unusual forms.

A picture is reduced before anything else is done with it, a band of rows at a time, so that the conversions on the way
to RGB (palettes, 16 bits, alpha) never see more than a band of the large picture. Transparency weighs in the reduction
as on a screen: what is invisible has no colour. AVIF is Pillow's own; HEIC takes pi-heif, libheif with a decoder alone
(LGPL, 1.5 MB), whose absence is an ImageError that names it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, UnidentifiedImageError

from .colour_profile import to_srgb
from .containers import Bare, bare_png, bare_webp
from .errors import ImageError
from .geometry import WHITE
from .kinds import describe, kind_of
from .limits import check_pixels, most_pixels
from .orientation import UPRIGHT, exif_orientation

try:
    import pi_heif
except ImportError:
    pi_heif = None
else:
    pi_heif.register_heif_opener(thumbnails=False)

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already

FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF", "AVIF": "AVIF"}
FORMATS["HEIC"] = "HEIF"
"""What is taken, and Pillow's name for it."""
REDUCING_GAP = 3
"""Averaged down to so many times the size that is wanted, filtered from there on."""
BAND = 2**20
"""Pixels of a band."""
META = 64 * 1024
"""An AVIF file describes its items within so many bytes from its start."""


@dataclass(frozen=True)
class Picture:
    """An opened image file: its kind, Pillow's view of it, the bytes that are decoded, and what its metadata say."""

    kind: str
    image: ImageFile.ImageFile
    data: bytes
    orientation: int
    profile: bytes | None


def open_picture(data: bytes) -> Picture:
    """Reads the header of an image file and checks what it declares; decodes nothing.

    Raises:
        ImageError: no image of these formats, a damaged header, or too many pixels.
    """
    kind, words = kind_of(data)
    if kind not in FORMATS or "stray" in words or "without" in words:
        message = f"not an image of a known format ({', '.join(FORMATS)}): {describe(data)}"
        raise ImageError(message, "not an image", kind)
    if kind == "HEIC" and pi_heif is None:
        message = f"HEIC is decoded where the package pi-heif is installed, which it is not: {describe(data)}"
        raise ImageError(message, "not supported", kind)
    bare = {"PNG": bare_png, "WEBP": bare_webp}.get(kind, Bare)(data)
    try:
        image = _opened(bare.data, kind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"{kind} declares too many pixels, at most {most_pixels(kind)} are taken: {error}"
        raise ImageError(message, "too large", kind) from error
    except Exception as error:  # whatever a parser raises over foreign bytes is the fault of the bytes
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise ImageError(f"damaged image, {describe(data)}{reason}", "damaged", kind) from error
    check_pixels(kind, image.height, image.width)
    if kind in ("PNG", "WEBP"):
        return Picture(kind, image, bare.data, bare.orientation, bare.profile)
    # Pillow turns a TIFF itself.
    orientation = UPRIGHT if kind == "TIFF" else exif_orientation(image.info.get("exif", b""))
    return Picture(kind, image, data, orientation, image.info.get("icc_profile"))


def _opened(data: bytes, kind: str) -> ImageFile.ImageFile:
    formats = [FORMATS[kind]]
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (UnidentifiedImageError, ValueError):
        if kind != "AVIF":
            raise
        # Its EXIF data may be broken, and an item of another type is not looked at.
        return Image.open(io.BytesIO(data[:META].replace(b"Exif", b"none") + data[META:]), formats=formats)


def decode_picture(picture: Picture, height: int, width: int) -> Image.Image:
    """Decodes an opened picture to a size: RGB in sRGB, on white, not turned.

    Raises:
        ImageError: the pixels are damaged or incomplete, or of values that no two viewers show alike.
    """
    image = picture.image
    try:
        if picture.kind == "JPEG":
            image.draft(None, (width, height))  # None keeps CMYK as it is
        image.load()
        _mend(picture)
        small = _reduced(image, height, width)
    except ImageError:
        raise
    except Exception as error:  # see open_picture
        message = f"damaged or truncated {picture.kind}, {len(picture.data)} bytes: {error}"
        raise ImageError(message, "damaged", picture.kind) from error
    small = to_srgb(small, picture.profile)
    if small.mode == "RGBA":
        ground = Image.new("RGBA", small.size, (WHITE, WHITE, WHITE, WHITE))
        small = Image.alpha_composite(ground, small)
    return small.convert("RGB")


def _mend(picture: Picture) -> None:
    """Puts right what Pillow takes from the file as it stands there, in place."""
    image, data = picture.image, picture.data
    transparency = image.info.get("transparency")
    if picture.kind == "PNG" and data[25] == 0 and data[24] < 8 and isinstance(transparency, int):
        white = (1 << data[24]) - 1  # a value of 1, 2 or 4 bits; the pixels have been scaled to 8
        image.info["transparency"] = (transparency & white) * 255 // white
    if picture.kind == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)  # nobody paints a picture of nothing: the fourth byte is padding


def _reduced(image: Image.Image, height: int, width: int) -> Image.Image:
    """A loaded picture at a size, as L, RGB, RGBA or CMYK."""
    if image.size == (width, height):
        return _plain(image)
    by = (int(image.width / width / REDUCING_GAP) or 1, int(image.height / height / REDUCING_GAP) or 1)
    box = (0, 0, image.width / by[0], image.height / by[1])
    small = _plain(image) if by == (1, 1) else _averaged(image, by)
    return small.resize((width, height), Image.Resampling.BICUBIC, box)


def _averaged(image: Image.Image, by: tuple[int, int]) -> Image.Image:
    """The means of all blocks of by[0] x by[1] pixels, smaller ones at the right and lower edge, weighted by alpha."""
    rows = (BAND // image.width // by[1] or 1) * by[1]
    tops = range(0, image.height, rows)
    bands = (image.crop((0, top, image.width, min(top + rows, image.height))) for top in tops)
    for top, band in zip(tops, map(_plain, bands), strict=True):
        part = band.reduce(by)
        if top == 0:
            small = Image.new(part.mode, (part.width, -(-image.height // by[1])))
        small.paste(part, (0, top // by[1]))
    return small


def _plain(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB, RGBA if any of it is transparent, or the L or CMYK that it is."""
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    if image.mode == "F":
        raise _numbers(image, "floating-point")
    if image.mode in ("1", "L", "CMYK") and "transparency" not in image.info:
        return image.convert("L") if image.mode == "1" else image
    return image.convert("RGBA" if image.has_transparency_data or image.mode == "RGBa" else "RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        raise _numbers(image, "32-bit")
    grey = ((values.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)  # round(v / 257)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = WHITE
    return Image.fromarray(grey)


def _numbers(image: Image.Image, kind: str) -> ImageError:
    format = getattr(image, "format", None) or "TIFF"
    return ImageError(f"{format} of {kind} values, which no two viewers show alike", "not supported", format)
