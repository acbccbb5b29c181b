"""The decoder: every kind of file, shown as a viewer shows it or refused with what was found."""

import base64
import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from catalogue.images import ImageError, decode_image, fitted_size
from tests.catalogue.pictures import BLUE, GREEN, RED, chunk, difference, encoded, photo, png, quarters

# Quality and geometry


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_scaled_decoding_of_a_large_jpeg_looks_like_pillow(subsampling):
    data = encoded(photo(1000, 1000), "JPEG", quality=90, subsampling=subsampling)
    reference = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC)
    assert difference(decode_image(data, 224, 224), np.asarray(reference)) < 4


@pytest.mark.parametrize("size", [(1000, 700), (333, 999), (250, 225), (224, 224), (90, 130)])
def test_every_reduction_and_enlargement_looks_like_pillow(size):
    data = encoded(photo(*size), "JPEG", quality=92)
    height, width = fitted_size(*size, 224, 224)
    reference = Image.open(io.BytesIO(data)).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (224 - height) // 2, (224 - width) // 2
    decoded = decode_image(data, 224, 224)[top : top + height, left : left + width]
    assert difference(decoded, np.asarray(reference)) < 4


def test_an_image_of_the_target_size_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels), "PNG"), 48, 40), pixels)
    jpeg = encoded(photo(48, 40), "JPEG", quality=95)
    assert difference(decode_image(jpeg, 48, 40), np.asarray(Image.open(io.BytesIO(jpeg)))) < 0.5


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_aspect_ratio_is_kept_and_the_rest_is_white_on_both_sides(format):
    data = encoded(Image.new("RGB", (200, 100), (20, 120, 40)), format)
    wide = decode_image(data, 64, 64)
    assert (wide[:16] == 255).all()
    assert (wide[48:] == 255).all()
    assert difference(wide[16:48], np.full((32, 64, 3), (20, 120, 40))) < 2
    tall = decode_image(encoded(Image.new("RGB", (100, 200), (20, 120, 40)), format), 64, 64)
    assert (tall[:, :16] == 255).all()
    assert (tall[:, 48:] == 255).all()
    assert difference(tall[:, 16:48], np.full((64, 32, 3), (20, 120, 40))) < 2


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_any_size(height, width, target_height, target_width, format):
    data = encoded(Image.new("RGB", (width, height), (0, 0, 0)), format)
    decoded = decode_image(data, target_height, target_width)
    assert decoded.shape == (target_height, target_width, 3)
    assert decoded.dtype == np.uint8
    fit = fitted_size(height, width, target_height, target_width)
    assert (decoded < 128).all(axis=2).sum() == fit[0] * fit[1]
    assert fit[0] == target_height or fit[1] == target_width


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_images_one_pixel_wide_are_decoded(format, size):
    decoded = decode_image(encoded(Image.new("RGB", size, (0, 0, 0)), format), 32, 32)
    dark = (decoded < 128).all(axis=2)
    assert dark.sum() == (32 * 32 if size == (1, 1) else 32)


def test_a_target_without_pixels_is_the_callers_mistake():
    with pytest.raises(ValueError, match="0x32") as caught:
        decode_image(encoded(quarters(), "PNG"), 0, 32)
    assert not isinstance(caught.value, ImageError)


# Kinds of files


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_lossless_format_gives_the_same_pixels(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(quarters(), format, **options), 64, 64), np.asarray(quarters()))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_every_kind_of_jpeg_is_decoded(options):
    data = encoded(quarters(), "JPEG", quality=95, **options)
    assert difference(decode_image(data, 64, 64), np.asarray(quarters())) < 6


def test_a_jpeg_of_unusual_chroma_subsampling_is_decoded():
    # Three luma blocks beside each other to one of each chroma, which simplejpeg has no name for. All blocks of a
    # mid-grey picture have the same code, so the one unit of 24x8 pixels can be written by hand.
    data = bytearray(encoded(Image.new("RGB", (24, 8), (128, 128, 128)), "JPEG", subsampling=0))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    data[frame + 11] = 0x31
    bits = ("001010" * 3 + "0000" * 2).ljust(32, "1")
    data[scan + 14 :] = int(bits, 2).to_bytes(4, "big") + b"\xff\xd9"
    assert difference(decode_image(bytes(data), 8, 24), np.full((8, 24, 3), 128)) == 0


def test_grey_jpeg_is_decoded():
    decoded = decode_image(encoded(Image.new("L", (64, 64), 77), "JPEG"), 64, 64)
    assert difference(decoded, np.full((64, 64, 3), 77)) < 1.5


@pytest.mark.parametrize("size", [64, 640])
def test_cmyk_jpeg_has_the_colours_that_pillow_shows(size):
    data = encoded(quarters(size).convert("CMYK"), "JPEG", quality=95)
    decoded = decode_image(data, 64, 64)
    reference = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    assert difference(decoded, np.asarray(reference)) < 4
    for place, colour in (((16, 16), RED), ((16, 48), GREEN), ((48, 16), BLUE)):
        assert difference(decoded[place], np.array(colour)) < 12


def test_ycck_jpeg_has_the_colours_that_pillow_shows():
    data = bytearray(encoded(quarters().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0  # no transform: CMYK; 2 says that the same numbers are YCCK
    data[adobe + 11] = 2
    reference = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    assert difference(decode_image(bytes(data), 64, 64), np.asarray(reference)) < 4


def test_first_frame_of_an_animation_is_shown():
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(data, 32, 32) == RED).all()


def test_16_bit_grey_png_keeps_its_brightness():
    values = [0, 257, 1000, 32768, 65000, 65535]
    data = png(6, 1, 16, 0, [struct.pack(">6H", *values)])
    expected = [round(value / 257) for value in values]
    assert decode_image(data, 1, 6)[0].tolist() == [[value] * 3 for value in expected]


def test_16_bit_colour_png_keeps_its_colours():
    values = [65535, 0, 0, 0, 32896, 0, 0, 0, 65535]
    decoded = decode_image(png(3, 1, 16, 2, [struct.pack(">9H", *values)]), 1, 3)
    assert decoded[0].tolist() == [[255, 0, 0], [0, 128, 0], [0, 0, 255]]


def test_transparent_value_of_a_16_bit_grey_png_is_white():
    extra = chunk(b"tRNS", struct.pack(">H", 500))
    decoded = decode_image(png(2, 1, 16, 0, [struct.pack(">2H", 500, 0)], extra), 1, 2)
    assert decoded[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_value_of_a_grey_png_is_white_at_every_depth(depth):
    levels = 2**depth
    values = list(range(min(levels, 8)))
    row = sum(value << depth * (len(values) - 1 - place) for place, value in enumerate(values))
    bits = depth * len(values)
    row = (row << -bits % 8).to_bytes(-(-bits // 8), "big")
    extra = chunk(b"tRNS", struct.pack(">H", 1))
    decoded = decode_image(png(len(values), 1, depth, 0, [row], extra), 1, len(values))[0, :, 0]
    assert decoded.tolist() == [255 if value == 1 else value * 255 // (levels - 1) for value in values]


def test_a_bitmap_whose_fourth_byte_is_never_set_is_opaque():
    pixels = np.asarray(quarters().convert("RGBA"))[::-1, :, [2, 1, 0, 3]].copy()
    pixels[..., 3] = 0
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 64, 64, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0) + masks
    head = b"BM" + struct.pack("<IHHI", 138 + pixels.nbytes, 0, 0, 138) + header.ljust(124, b"\0")
    assert np.array_equal(decode_image(head + pixels.tobytes(), 64, 64), np.asarray(quarters()))
    pixels[0, 0, 3] = 255  # one opaque pixel: the others are meant to be seen through
    seen = decode_image(head + pixels.tobytes(), 64, 64)
    assert not (seen[-1, 0] == 255).all()
    assert (seen == 255).all(axis=2).sum() >= 64 * 64 - 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode):
    image = Image.new(mode, (3, 1), (0, 0) if mode == "LA" else (0, 0, 0, 0))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (100, alpha) if mode == "LA" else (100, 100, 100, alpha))
    decoded = decode_image(encoded(image, "PNG"), 1, 3)[0, :, 0]
    assert decoded.tolist() == pytest.approx([255, 255 - 155 * 128 / 255, 100], abs=1)


def test_transparent_palette_entry_lies_on_white():
    image = quarters().quantize(4)
    red = image.getpixel((0, 0))
    decoded = decode_image(encoded(image, "PNG", transparency=red), 64, 64)
    assert (decoded[:32, :32] == 255).all()
    assert (decoded[:32, 32:] == GREEN).all()


def test_palette_with_partial_alpha_lies_on_white():
    image = quarters().quantize(4)
    alphas = bytearray([255] * 4)
    alphas[image.getpixel((0, 0))] = 128
    decoded = decode_image(encoded(image, "PNG", transparency=bytes(alphas)), 64, 64)
    assert decoded[5, 5].tolist() == pytest.approx([255, 127, 127], abs=1)


@pytest.mark.parametrize("size", [16, 4])
def test_colour_hidden_under_transparency_does_not_bleed_when_reduced(size):
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :33] = (*RED, 0)  # invisible red beside opaque black
    pixels[:, 33:] = (0, 0, 0, 255)
    decoded = decode_image(encoded(Image.fromarray(pixels), "PNG"), size, size).astype(int)
    assert np.abs(decoded - decoded[:, :, :1]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "size"), [("JPEG", (96, 48)), ("JPEG", (960, 480)), ("PNG", (96, 48))])
def test_exif_orientation_is_applied(orientation, format, size):
    image = quarters(max(size)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    height, width = (96, 48) if orientation >= 5 else (48, 96)
    assert upright.height * width == upright.width * height
    reference = np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC))
    assert difference(decode_image(data, height, width), reference) < 4


def test_exif_orientation_is_found_behind_other_segments():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(quarters(), "JPEG", quality=95, exif=exif, icc_profile=b"x" * 100_000)
    assert difference(decode_image(data, 64, 64), np.asarray(quarters().rotate(180))) < 6


def test_broken_exif_leaves_the_picture_as_stored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(quarters(), "JPEG", quality=95, exif=exif)
    broken = data.replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"Exif\0\0II", b"Exif\0\0??")
    assert broken != data
    assert difference(decode_image(broken, 64, 64), np.asarray(quarters())) < 6


def test_stray_bytes_between_jpeg_segments_are_harmless():
    data = encoded(quarters(), "JPEG", quality=95)
    scan = data.index(b"\xff\xda")
    decoded = decode_image(data[:scan] + b"\0" * 5 + data[scan:], 64, 64)
    assert difference(decoded, np.asarray(quarters())) < 6


# Refusals


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"\0" * 100, "zero bytes"),
        (b"Just a text, not an image.\n", "text beginning 'Just a text"),
        (base64.b64encode(encoded(quarters(), "JPEG")), r"an image in base64.*send its bytes as they are, decoded"),
        (b"data:image/png;base64,iVBORw0KGgo=", "an image in base64"),
        ("Größe: zwölf\n".encode() * 200, "text beginning 'Größe"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"\0\0\0\x20ftypmp42more", "mp42"),
        (bytes(range(256)) * 4, "unknown bytes"),
        (b"\x00\x10Some words and\x01\x02\n", "unknown bytes"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (bytes(range(128, 256)), "80 81 82"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_found(data, found):
    with pytest.raises(ImageError, match=found):
        decode_image(data, 32, 32)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused_by_their_kind(format, share):
    data = encoded(photo(120, 120), format)
    with pytest.raises(ImageError, match=r"(?i)truncated|damaged"):
        decode_image(data[: int(len(data) * share)], 32, 32)


def test_a_truncated_jpeg_is_refused_even_when_it_was_closed_again():
    data = encoded(photo(200, 200), "JPEG")
    with pytest.raises(ImageError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2] + b"\xff\xd9", 32, 32)


def test_a_truncated_cmyk_jpeg_is_refused():
    data = encoded(photo(200, 200).convert("CMYK"), "JPEG")
    with pytest.raises(ImageError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2], 32, 32)


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_but_image_errors(format, data):
    original = bytearray(encoded(quarters(24), format))
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode_image(bytes(original), 16, 16).shape == (16, 16, 3)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_an_image_error(data):
    with contextlib.suppress(ImageError):
        assert decode_image(data, 8, 8).shape == (8, 8, 3)


def test_values_without_a_known_range_are_refused():
    image = Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32))
    with pytest.raises(ImageError, match="floating-point"):
        decode_image(encoded(image, "TIFF"), 8, 8)
