"""Pictures and image files that several tests use, files by hand where no encoder writes their kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height, width, seed=0):
    """A picture with the smooth and the fine structure of a photo: 1/f noise."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    shared = generator.normal(size=(height, width))
    channels = []
    for _ in range(3):
        noise = 0.4 * generator.normal(size=(height, width)) + shared
        channels.append(np.fft.ifft2(np.fft.fft2(noise) / frequency**1.4).real)
    pixels = np.stack(channels, axis=-1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 45 + 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def quarters(size=64):
    """Red and green above, blue and white below: no turn leaves it as it is."""
    image = Image.new("RGB", (size, size), WHITE)
    draw = ImageDraw.Draw(image)
    half = size // 2
    draw.rectangle((0, 0, half - 1, half - 1), fill=RED)
    draw.rectangle((half, 0, size, half - 1), fill=GREEN)
    draw.rectangle((0, half, half - 1, size), fill=BLUE)
    return image


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


def chunk(name, body, crc=None):
    """A chunk of a PNG; with its own checksum, or the given one."""
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(width, height, bit_depth, colour_type, rows, extra=b""):
    """A PNG by hand, for the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def riff(*chunks):
    """A WebP of the given chunks, each its name and body."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_bomb(width, height):
    """A lossless black WebP of some forty bytes, however many pixels it has."""
    fields = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3)]  # size, no alpha, version
    fields += [(0, 1), (0, 1), (0, 1)]  # no transform, no colour cache, one group of codes
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5  # five codes of the single symbol 0, which take no bits
    bits, place = 0, 0
    for value, size in fields:
        bits |= value << place
        place += size
    return riff((b"VP8L", b"\x2f" + bits.to_bytes(-(-place // 8), "little")))


def display_p3():
    """The profile of phones' photos: sRGB's curve, wider primaries; matrix and curves after ICC.1:2010."""

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(*values):
        return b"XYZ \0\0\0\0" + fixed(*values)

    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = [(b"rXYZ", xyz(0.51512, 0.2412, -0.00105)), (b"gXYZ", xyz(0.29198, 0.69225, 0.04189))]
    tags += [(b"bXYZ", xyz(0.1571, 0.06657, 0.78407)), (b"wtpt", xyz(0.9642, 1, 0.8249))]
    tags += [(b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"desc", b"desc\0\0\0\0\0\0\0\1\0" + bytes(79))]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytes(8) + b"\2\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    profile = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def with_chunk(extra, behind=b"IHDR"):
    """A PNG of the quarters with further bytes behind one of its chunks."""
    data = encoded(quarters(), "PNG")
    at = data.index(behind)
    at += 8 + struct.unpack(">I", data[at - 4 : at])[0]
    return data[:at] + extra + data[at:]
