"""From an encoded image file to pixels: the one decoder of training and serving.

JPEG goes through libjpeg-turbo with DCT scaling (simplejpeg): a large photo is decoded at the smallest of the scales
n/8 that still covers the target, so most of its pixels are never computed. Everything else goes through Pillow, limited
to the formats of `FORMATS`. An image is shown as a viewer shows it: turned by its EXIF orientation, first frame,
transparency on white, 16 bits reduced to 8; embedded colour profiles are not applied.
Bytes are not trusted: size and declared pixels are checked before any pixel is decoded, and all that can go wrong
arrives as `ImageError`. Imports only numpy, Pillow and simplejpeg, since this file is also copied next to the served
model `decode_image`; runs on numpy 1.26 and 2, Python 3.10 and later.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64 * 10**6
MAX_SCANS = 100
"""Progressive JPEG: every scan walks over all pixels again; encoders write about ten."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
WHITE = 255
EXIF_ORIENTATION = 0x0112


class ImageError(ValueError):
    """Bytes that are no image, or none that is taken; the message says what was found."""


def decode_image(data: bytes, height: int, width: int) -> np.ndarray:
    """Decodes an image file into a picture of a given size, aspect ratio kept, centred, padded with white.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP or TIFF file.
        height: rows of the result, pixels.
        width: columns of the result, pixels.

    Returns:
        uint8 [height, width, 3], RGB. An image of exactly this size comes back as it is, without resampling.

    Raises:
        ImageError: the bytes are empty, more than `MAX_BYTES`, no image of these formats, damaged or truncated, or
            declare more than `MAX_PIXELS` pixels.
        ValueError: height or width is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"target size {height}x{width} is not positive")
    if not data:
        raise ImageError("empty image: 0 bytes")
    if len(data) > MAX_BYTES:
        raise ImageError(f"image of {len(data)} bytes; at most {MAX_BYTES} are taken")
    if data.startswith(b"\xff\xd8\xff"):
        pixels, orientation = _decode_jpeg(data, height, width)
    else:
        pixels, orientation = _decode_with_pillow(data, height, width)
    return _letterbox(_upright(pixels, orientation), height, width)


def is_readable(data: bytes) -> bool:
    """Whether `decode_image` takes an image file."""
    try:
        decode_image(data, 8, 8)
    except ImageError:
        return False
    return True


def fitted_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Height and width of the largest picture of the given aspect ratio that fits the target; at least 1 pixel."""
    scale = min(target_height / height, target_width / width)
    return (
        min(target_height, max(1, round(height * scale))),
        min(target_width, max(1, round(width * scale))),
    )


# The two decoders: each returns the stored picture, already at its fitted size, and how it has to be turned.


def _decode_jpeg(data: bytes, height: int, width: int) -> tuple[np.ndarray, int]:
    exif, progressive = _read_jpeg_segments(data)
    if progressive and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageError(f"progressive JPEG of {scans} scans; at most {MAX_SCANS} are taken")
    try:
        stored_height, stored_width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # damaged, or a chroma subsampling that simplejpeg has no name for
        return _decode_with_pillow(data, height, width)
    _check_pixels("JPEG", stored_height, stored_width)
    if colours in ("CMYK", "YCCK"):
        return _decode_with_pillow(data, height, width)
    orientation = 1 if exif is None else _exif_orientation(exif)
    fit = _stored_fit(stored_height, stored_width, orientation, height, width)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=fit[0], min_width=fit[1])
    except ValueError as error:
        if "extraneous bytes" in str(error):  # stray bytes between segments: common, and harmless to every viewer
            return _decode_with_pillow(data, height, width)
        raise ImageError(f"damaged or truncated JPEG, {len(data)} bytes: {error}") from error
    if pixels.shape[:2] != fit:
        pixels = np.asarray(_resize_decoded(Image.fromarray(pixels), *fit))
    return pixels, orientation


def _decode_with_pillow(data: bytes, height: int, width: int) -> tuple[np.ndarray, int]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = image.format or "image"
            _check_pixels(kind, image.height, image.width)
            try:
                if kind == "JPEG":
                    # Not turned yet, so the longer side of the target bounds both; None keeps CMYK as it is.
                    image.draft(None, (max(height, width), max(height, width)))
                image.load()
                orientation = image.getexif().get(EXIF_ORIENTATION, 1)
                fit = _stored_fit(image.height, image.width, orientation, height, width)
                return np.asarray(_on_white(_resize(_rgb_or_rgba(image), *fit))), orientation
            except ImageError:
                raise
            except Exception as error:  # whatever a parser raises over foreign bytes is the fault of the bytes
                raise ImageError(f"damaged or truncated {kind}, {len(data)} bytes: {error}") from error
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image declares too many pixels, at most {MAX_PIXELS} are taken: {error}") from error
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)}): {_describe(data)}") from None
    except Exception as error:
        raise ImageError(f"damaged image, {_describe(data)}: {error}") from error


def _check_pixels(kind: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{kind} declares no pixels: {width}x{height}")
    if height * width > MAX_PIXELS:
        raise ImageError(f"{kind} declares {width}x{height} pixels; at most {MAX_PIXELS} are taken")


def _rgb_or_rgba(image: Image.Image) -> Image.Image:
    """A loaded Pillow image of any mode as RGB, or RGBA if any of it is transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{image.format} of 32-bit values, which no two viewers show alike")
        grey = ((values.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)  # round(v / 257)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = WHITE
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{image.format} of floating-point values, which no two viewers show alike")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
    return Image.alpha_composite(ground, image).convert("RGB")


# Turning and placing.


def _read_jpeg_segments(data: bytes) -> tuple[bytes | None, bool]:
    """The EXIF segment of a JPEG, if it has one, and whether it is progressive; looks at the header alone."""
    exif, progressive = None, False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9):
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and exif is None and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + length]
        at += 2 + length
    return exif, progressive


def _exif_orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif)
        return tags.get(EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF data: a viewer shows the picture as stored
        return 1


def _stored_fit(stored_height: int, stored_width: int, orientation: int, height: int, width: int) -> tuple[int, int]:
    """The fitted size as it lies in the file: orientations 5 to 8 swap the axes."""
    if orientation in (5, 6, 7, 8):
        return fitted_size(stored_height, stored_width, width, height)
    return fitted_size(stored_height, stored_width, height, width)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    # Antialiased: the filter widens with the reduction, and transparent pixels weigh nothing. The gap lets far larger
    # pictures be averaged down first.
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _resize_decoded(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.width < width or image.height < height:
        return _resize(image, height, width)
    # The scaled DCT has filtered already and leaves a small factor: half the taps give a picture as close to the
    # bicubic one of the whole photo (0.49/255 for 0.48/255). BOX, the mean of the area, is faster still, but at 1.3.
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _letterbox(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = np.full((height, width, 3), WHITE, dtype=np.uint8)
    top = (height - pixels.shape[0]) // 2
    left = (width - pixels.shape[1]) // 2
    picture[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return picture


SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop document"),
    (b"\x89PNG\r\n\x1a\n", "a damaged PNG"),
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"\x00\x00\x01\x00", "an icon file"),
)


def _describe(data: bytes) -> str:
    """What the bytes are, for the message of a refusal."""
    size = f"{len(data)} bytes"
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return f"{name}, {size}"
    if data[4:8] == b"ftyp":
        return f"an ISO media file ({data[8:12].decode('latin-1')!r}, such as AVIF, HEIC or video), {size}"
    head = data[:1024]
    if not head.strip(b"\0"):
        return f"zero bytes, {size}"
    try:
        text = head.decode("utf-8", errors="strict" if len(data) <= 1024 else "ignore").strip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return f"unknown bytes beginning {data[:8].hex(' ')}, {size}"
    if "<svg" in text.lower():
        return f"an SVG drawing, {size}"
    if text.lower().startswith(("<!doctype html", "<html")):
        return f"an HTML page, {size}"
    if text.isprintable() or "\n" in text:
        return f"text beginning {text[:40]!r}, {size}"
    return f"unknown bytes beginning {data[:8].hex(' ')}, {size}"
