"""Image files as people send them: broken metadata, phones' formats, endings that are not quite right.

Each kind is one that was refused or shown wrongly once.
"""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from catalogue.images import ImageError, decode_image
from tests.catalogue.pictures import chunk, difference, encoded, photo, quarters, riff, with_chunk

NO_TIFF = b"\0\x08\0\x02\x01\x12\0\x03\0"
TURNING_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
CHUNKS = {
    "text that unpacks to megabytes": chunk(b"zTXt", b"note\0\0" + zlib.compress(b" " * 1_200_000)),
    "text of a wrong checksum": chunk(b"tEXt", b"note\0text", crc=1),
    "profile of a wrong checksum": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile"), crc=1),
    "profile of an unknown method": chunk(b"iCCP", b"x\0\1" + zlib.compress(b"profile")),
    "profile that is none": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile")),
    "profile that does not unpack": chunk(b"iCCP", b"x\0\0profile"),
    "profile without a body": chunk(b"iCCP", b""),
    "short chromaticities": chunk(b"cHRM", b"\0" * 7),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short resolution": chunk(b"pHYs", b"\0" * 3),
    "EXIF that is none": chunk(b"eXIf", NO_TIFF),
    "EXIF that ends early": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03"),
    "raw profile that is no number": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nnothing"),
    "XMP that asks for a turn": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNING_XMP),
    "transparency of another colour type": chunk(b"tRNS", b"\0"),
    "transparency of a wrong checksum": chunk(b"tRNS", b"\0\xff\0\0\0\0", crc=1),
    "animation of nothing": chunk(b"acTL", b"\0" * 3) + chunk(b"fcTL", b""),
    "a chunk nobody knows": chunk(b"abCd", b"\xff" * 9),
}


@pytest.mark.parametrize("place", [b"IHDR", b"IDAT"])
@pytest.mark.parametrize("kind", CHUNKS)
def test_what_no_pixel_of_a_png_depends_on_is_passed_over(kind, place):
    assert np.array_equal(decode_image(with_chunk(CHUNKS[kind], place), 64, 64), np.asarray(quarters()))


def test_a_png_that_ends_behind_its_pixels_is_decoded():
    data = with_chunk(b"\0\0\xff\xfftEXtcut", behind=b"IDAT")
    for end in (data.index(b"cut") - 8, data.index(b"cut") + 3):
        assert np.array_equal(decode_image(data[:end], 64, 64), np.asarray(quarters()))
    assert np.array_equal(decode_image(encoded(quarters(), "PNG") + b"trailer" * 999, 64, 64), np.asarray(quarters()))


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_critical_chunks_of_a_png_stay_strict(name):
    data = bytearray(encoded(quarters().quantize(4), "PNG"))
    data[data.index(name) + 5] ^= 1
    with pytest.raises(ImageError, match=r"damaged|declares"):
        decode_image(bytes(data), 64, 64)


@pytest.mark.parametrize(
    "extra", [(b"EXIF", NO_TIFF), (b"ICCP", b"none"), (b"XMP ", TURNING_XMP), (b"odd?", b"123"), (b"EXIF", b"")]
)
def test_what_no_pixel_of_a_webp_depends_on_is_passed_over(extra):
    pixels = (b"VP8L", encoded(quarters(), "WEBP", lossless=True)[20:])
    extended = (b"VP8X", b"\x2c\0\0\0" + struct.pack("<I", 63)[:3] * 2)
    for order in ((extended, extra, pixels), (extended, pixels, extra)):
        data = riff(*order)
        assert np.array_equal(decode_image(data, 64, 64), np.asarray(quarters()))
        assert np.array_equal(decode_image(data + b"trailer", 64, 64), np.asarray(quarters()))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_turns_every_picture_and_xmp_turns_none(format):
    best = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}.get(format, {})
    if format in ("JPEG", "WEBP", "AVIF"):  # for PNG see above
        data = encoded(quarters(), format, xmp=TURNING_XMP, **best)
        assert TURNING_XMP in data
        assert difference(decode_image(data, 64, 64), np.asarray(quarters())) < 6
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(quarters(), format, exif=exif, **best)
    assert difference(decode_image(data, 64, 64), np.asarray(quarters().rotate(-90))) < 6


def test_an_avif_with_unreadable_exif_is_decoded():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encoded(quarters(), "AVIF", exif=exif, quality=95)
    assert b"MM\0*" in data
    assert difference(decode_image(data.replace(b"MM\0*", b"????"), 64, 64), np.asarray(quarters())) < 6


# JPEGs that are not quite right


def test_a_jpeg_that_lacks_only_its_end_is_decoded():
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(quarters(), "JPEG", quality=95, **options)
        whole = decode_image(data, 64, 64)
        for trailer in (b"", b"\0" * 50, b"trailing text"):
            assert np.array_equal(decode_image(data[:-2] + trailer, 64, 64), whole)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.99])
def test_a_jpeg_that_lacks_picture_data_is_refused_with_or_without_an_end(options, share):
    data = encoded(photo(200, 200), "JPEG", **options)
    for end in (b"", b"\xff\xd9"):
        with pytest.raises(ImageError, match="truncated JPEG"):
            decode_image(data[: int(len(data) * share)] + end, 32, 32)


def test_what_lies_behind_the_end_of_a_jpeg_is_no_scan():
    data = encoded(quarters(), "JPEG", quality=95, progressive=True)
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" * 200
    assert np.array_equal(decode_image(data + film, 64, 64), decode_image(data, 64, 64))


def test_a_jpeg_of_an_unknown_jfif_version_or_with_stray_bytes_is_decoded():
    data = encoded(quarters(), "JPEG", quality=95)
    whole = decode_image(data, 64, 64)
    odd = data.replace(b"JFIF\0\1\1", b"JFIF\0\7\7")
    table = data.index(b"\xff\xdb")
    for changed in (odd, data[:table] + b"\0\1\2" + data[table:], data[:20] + b"\xff\xfe\0\2" * 40 + data[20:]):
        assert changed != data
        assert np.array_equal(decode_image(changed, 64, 64), whole)


def test_a_jpeg_behind_stray_bytes_is_named():
    with pytest.raises(ImageError, match="a JPEG behind 2 stray bytes") as caught:
        decode_image(b"\r\n" + encoded(quarters(), "JPEG"), 64, 64)
    assert (caught.value.reason, caught.value.format) == ("not an image", "JPEG")


# AVIF and HEIC


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_avif_is_decoded(subsampling):
    image = photo(300, 200)
    data = encoded(image, "AVIF", quality=90, subsampling=subsampling)
    reference = np.asarray(image.resize((100, 150), Image.Resampling.BICUBIC))
    assert difference(decode_image(data, 150, 100), reference) < 4


def test_transparent_avif_lies_on_white():
    image = quarters().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([255, 0]), 32)[:, None].repeat(64, axis=1)))
    decoded = decode_image(encoded(image, "AVIF", quality=95), 64, 64)
    assert (decoded[34:] > 250).all()
    assert difference(decoded[:30], np.asarray(quarters())[:30]) < 6


def test_heic_is_decoded_upright():
    pillow_heif = pytest.importorskip("pillow_heif", reason="the encoder of HEIC; pi-heif only decodes")
    image = photo(96, 64)
    for orientation in (1, 6, 3):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=95, exif=exif.tobytes())
        stored = image.copy()
        stored.getexif()[0x0112] = orientation
        shown = ImageOps.exif_transpose(stored)
        assert difference(decode_image(file.getvalue(), shown.height, shown.width), np.asarray(shown)) < 6


def test_without_its_decoder_heic_names_the_package():
    program = (
        "import sys; sys.modules['pi_heif'] = None\n"  # how Python marks a module that cannot be imported
        "from catalogue.images import ImageError, decode_image\n"
        "try: decode_image(b'\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic', 8, 8)\n"
        "except ImageError as error: print(error.reason, error.format, error)"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout.startswith("not supported HEIC HEIC is decoded where the package pi-heif is installed")


@pytest.mark.parametrize("brand", [b"avif", b"heic"])
def test_a_damaged_container_is_refused_by_its_format(brand):
    with pytest.raises(ImageError, match="damaged") as caught:
        decode_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(100), 8, 8)
    assert (caught.value.reason, caught.value.format) == ("damaged", {b"avif": "AVIF", b"heic": "HEIC"}[brand])
