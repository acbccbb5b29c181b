"""Valid images in mutated files, each with the picture that it shows: metadata, tails, EXIF, depths, colour spaces.

The reference comes from the numbers that went into the file, never from a decoder: source pixels, turned by numpy, laid
on white by the formula. A lossy encoder gets smooth pictures and is allowed its own error.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from tests.catalogue.pictures import chunk, display_p3, riff
from tests.catalogue.test_colour_profile import p3_to_srgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BROKEN_EXIF = (b"\0\x08\0\x02", b"MM\0*\0\0\0\x08\0\x09\x01\x12", b"II*\0\xff\xff\xff\xff", b"Exif\0\0??")
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@dataclass(frozen=True)
class MutatedImage:
    """A file, what was done to it, the picture that it shows, uint8 [H, W, 3], and how far on average it may be off."""

    name: str
    data: bytes
    reference: np.ndarray
    tolerance: float


def mutated_images(count: int, seed: int) -> Iterator[MutatedImage]:
    """A seeded corpus; every kind comes equally often."""
    kinds = (jpeg, jpeg, png, png, hand_made_png, webp, gif, bmp, tiff, avif)
    for number in range(count):
        yield kinds[number % len(kinds)](np.random.default_rng((seed, number)))


def picture(chance: np.random.Generator, channels: int = 3) -> np.ndarray:
    """Smooth waves, [H, W, channels] uint8, of sizes that are no multiples of a block."""
    height, width = chance.integers(9, 90, 2)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / chance.uniform(15, 60) + columns / chance.uniform(15, 60) + chance.uniform(0, 6))
             for _ in range(channels)]  # fmt: skip
    return np.rint(128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Straight alpha on white."""
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "a maker", orientation
    return tags.tobytes()


def metadata(chance: np.random.Generator, pixels: np.ndarray) -> tuple[dict[str, object], np.ndarray, str]:
    """Options of Pillow's encoders, the picture as it is then seen, and a name."""
    options: dict[str, object] = {}
    orientation = int(chance.integers(0, 9))
    if orientation:
        options["exif"] = exif(orientation)
    shown, profile = TURNS[orientation or 1](pixels), chance.choice(["none", "srgb", "p3", "broken", "cut"])
    if profile != "none":
        cut = display_p3()[:200]
        options["icc_profile"] = {"srgb": SRGB, "p3": display_p3(), "broken": bytes(300), "cut": cut}[profile]
    if profile == "p3":
        shown = np.rint(p3_to_srgb(shown.astype(float))).astype(np.uint8)
    return options, shown, f"orientation {orientation} profile {profile}"


def tail(chance: np.random.Generator) -> bytes:
    film = b"\0\0\0\x18ftypmp42\0\0\0\0" + chance.bytes(200) + b"\xff\xda\0\x08" * 150
    choices = [b"", b"\0" * 100, b"\r\n", chance.bytes(int(chance.integers(1, 3000))), film]
    return choices[chance.integers(len(choices))]


def jpeg(chance: np.random.Generator) -> MutatedImage:
    mode = chance.choice(["RGB", "RGB", "RGB", "L", "CMYK"])
    pixels = picture(chance)
    options: dict[str, object] = {"quality": 95, "progressive": bool(chance.integers(2))}
    options["subsampling"] = int(chance.integers(3))
    if chance.integers(4) == 0:
        options["restart_marker_rows"] = 1
    if mode == "RGB":
        more, shown, name = metadata(chance, pixels)
    else:
        more, name = {}, mode
        pixels = pixels[..., :1].repeat(3, axis=2)
        shown = pixels
    image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options, **more)  # type: ignore[arg-type]
    data = file.getvalue()
    table = data.index(b"\xff\xdb")
    match what := chance.integers(7):
        case 0:
            data = data[:-2]
        case 1:
            data = data[:table] + chance.bytes(4).replace(b"\xff", b"\0") + data[table:]
        case 2:
            data = data[:table] + b"\xff" * 5 + data[table:]
        case 3:
            data = data.replace(b"JFIF\0\1", b"JFIF\0\x09", 1)
        case 4:
            broken = b"Exif\0\0" + BROKEN_EXIF[chance.integers(len(BROKEN_EXIF))]
            later = data[:table] + b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken + data[table:]
            data = later
        case _:
            data += tail(chance)
    return MutatedImage(f"jpeg {mode} {options} {name} {what}", data, shown, 6)


def ancillary(chance: np.random.Generator) -> bytes:
    choices = [
        chunk(b"tEXt", b"note\0" + chance.bytes(20)),
        chunk(b"zTXt", b"note\0\0" + zlib.compress(b" " * 1_500_000)),
        chunk(b"tEXt", b"note\0text", crc=int(chance.integers(2**32))),
        chunk(b"iCCP", b"x\0\0" + chance.bytes(30)),
        chunk(b"iCCP", chance.bytes(9), crc=1),
        chunk(b"eXIf", BROKEN_EXIF[chance.integers(len(BROKEN_EXIF))]),
        chunk(b"iTXt", chance.bytes(15)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<a tiff:Orientation="6"/>'),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz"),
        *(chunk(name, chance.bytes(int(chance.integers(0, 12)))) for name in (b"cHRM", b"gAMA", b"pHYs", b"sRGB")),
        *(chunk(name, chance.bytes(int(chance.integers(0, 9)))) for name in (b"tIME", b"bKGD", b"sBIT", b"acTL")),
        chunk(bytes([chance.integers(ord("a"), ord("z"))]) + b"bCd", chance.bytes(8)),
    ]
    return choices[chance.integers(len(choices))]


def with_ancillary(chance: np.random.Generator, data: bytes) -> bytes:
    first, end = 33, data.rindex(b"IEND") - 4
    extra = ancillary(chance)
    return data[:first] + extra + data[first:] if chance.integers(2) else data[:end] + extra + data[end:]


def png(chance: np.random.Generator) -> MutatedImage:
    channels = int(chance.choice([1, 3, 4]))
    pixels = picture(chance, channels)
    if channels == 3:
        options, shown, name = metadata(chance, pixels)
    else:
        options, name = {}, f"{channels} channels"
        shown = on_white(pixels) if channels == 4 else pixels.repeat(3, axis=2)
    data = with_ancillary(chance, encoded(pixels, "PNG", **options)) + tail(chance)
    return MutatedImage(f"png {name}", data, shown, 1.5)


def hand_made_png(chance: np.random.Generator) -> MutatedImage:
    """Grey of 1 to 16 bits, perhaps with a value that is transparent; palettes with alphas."""
    depth = int(chance.choice([1, 2, 4, 8, 16]))
    height, width = (int(side) for side in chance.integers(1, 50, 2))
    values = chance.integers(0, 2**depth, (height, width))
    bits = (values[..., None] >> np.arange(depth)[::-1] & 1).reshape(height, -1).astype(np.uint8)
    rows = np.packbits(bits, axis=1)
    extra, palette = b"", depth <= 8 and bool(chance.integers(2))
    if palette:
        colours = chance.integers(0, 256, (2**depth, 4), dtype=np.uint8)
        shown = on_white(colours[values])
        extra = chunk(b"PLTE", colours[:, :3].tobytes()) + chunk(b"tRNS", colours[:, 3].tobytes())
    else:
        grey = np.rint(values * (255 / (2**depth - 1))).astype(np.uint8)
        if chance.integers(2):
            transparent = int(values[0, 0])
            grey[values == transparent] = 255
            extra = chunk(b"tRNS", struct.pack(">H", transparent))
        shown = grey[..., None].repeat(3, axis=2)
    header = struct.pack(">IIBBBBB", width, height, depth, 3 if palette else 0, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return MutatedImage(f"png depth {depth} palette {palette}", with_ancillary(chance, data), shown, 1)


def webp(chance: np.random.Generator) -> MutatedImage:
    lossless, channels = bool(chance.integers(2)), int(chance.choice([3, 4]))
    pixels = picture(chance, channels)
    options, shown, name = metadata(chance, pixels) if channels == 3 else ({}, on_white(pixels), "alpha")
    data = encoded(pixels, "WEBP", quality=95, lossless=lossless, exact=True, **options)
    if data[12:16] == b"VP8X" and chance.integers(2):
        extra = riff((b"XYZ" + chance.bytes(1), chance.bytes(int(chance.integers(1, 50)))))[12:]
        data = b"RIFF" + struct.pack("<I", len(data) - 8 + len(extra)) + data[8:] + extra
    return MutatedImage(f"webp {lossless} {name}", data + tail(chance), shown, 1.5 if lossless else 6)


def gif(chance: np.random.Generator) -> MutatedImage:
    image = Image.fromarray(picture(chance)).quantize(int(chance.integers(2, 256)))
    shown = np.asarray(image.convert("RGB")).copy()
    options: dict[str, object] = {"interlace": int(chance.integers(2)), "comment": chance.bytes(40)}
    if chance.integers(2):
        transparent = image.getpixel((0, 0))
        options["transparency"] = transparent
        shown[np.asarray(image) == transparent] = 255
    file = io.BytesIO()
    image.save(file, "GIF", **options)  # type: ignore[arg-type]
    return MutatedImage(f"gif {sorted(options)}", file.getvalue() + tail(chance), shown, 1)


def bmp(chance: np.random.Generator) -> MutatedImage:
    pixels = picture(chance)
    if chance.integers(2):
        return MutatedImage("bmp", encoded(pixels, "BMP") + tail(chance), pixels, 0)
    height, width = pixels.shape[:2]
    alpha = np.full((height, width, 1), chance.choice([0, 255]), np.uint8)
    stored = np.concatenate([pixels[::-1, :, ::-1], alpha], axis=2)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, stored.nbytes, 0, 0, 0, 0) + masks
    head = b"BM" + struct.pack("<IHHI", 138 + stored.nbytes, 0, 0, 138) + header.ljust(124, b"\0")
    return MutatedImage(f"bmp of 32 bits, alpha {alpha[0, 0]}", head + stored.tobytes(), pixels, 0)


def tiff(chance: np.random.Generator) -> MutatedImage:
    pixels = picture(chance)
    options, shown, name = metadata(chance, pixels)
    compression = chance.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
    data = encoded(pixels, "TIFF", compression=str(compression), **options)
    return MutatedImage(f"tiff {compression} {name}", data + tail(chance), shown, 1.5)


def avif(chance: np.random.Generator) -> MutatedImage:
    pixels = picture(chance)
    options, shown, name = metadata(chance, pixels)
    data = encoded(pixels, "AVIF", quality=95, speed=10, subsampling="4:4:4", **options)
    return MutatedImage(f"avif {name}", data + tail(chance), shown, 6)
