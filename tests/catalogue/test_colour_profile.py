"""Colours of image files: shown in sRGB as their profile means them, untouched where there is nothing to do."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from catalogue.images import decode_image
from tests.catalogue.pictures import display_p3, encoded, quarters


def p3_to_srgb(pixels):
    """By the definitions of both (CSS Color 4, section 10): linear light, one matrix, clipped, back."""
    matrix = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]])
    encoded = pixels / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4) @ matrix.T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_display_p3_is_shown_as_srgb(format):
    colours = np.uint8([[200, 60, 60], [60, 160, 60], [60, 60, 200], [128, 128, 128]])
    image = Image.fromarray(np.repeat(colours, 16, axis=0)[None].repeat(16, axis=0))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    options["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
    data = encoded(image, format, icc_profile=display_p3(), **options.get(format, {}))
    shown = decode_image(data, 16, 64)[8, 8::16]
    assert np.abs(p3_to_srgb(colours[1:]) - colours[1:]).max() > 10
    np.testing.assert_allclose(shown, p3_to_srgb(colours), atol=3)


def test_a_profile_is_applied_under_transparency():
    image = Image.new("RGBA", (8, 8), (60, 160, 60, 128))
    shown = decode_image(encoded(image, "PNG", icc_profile=display_p3()), 8, 8)[0, 0]
    opaque = p3_to_srgb(np.array([[60, 160, 60]]))[0]
    np.testing.assert_allclose(shown, 255 + (opaque - 255) * 128 / 255, atol=3)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_profile_for_other_channels_or_of_srgb_changes_nothing(mode):
    image = quarters().convert(mode)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb if mode == "RGB" else display_p3()
    plain = decode_image(encoded(image, "JPEG"), 64, 64)
    assert np.array_equal(decode_image(encoded(image, "JPEG", icc_profile=profile), 64, 64), plain)


def test_a_profile_in_several_segments_counts_when_it_is_whole():
    image = Image.new("RGB", (16, 16), (60, 160, 60))
    profile = display_p3()
    data = encoded(image, "JPEG", quality=100)
    halves = [profile[:300], profile[300:]]
    segments = [b"ICC_PROFILE\0" + bytes([number, 2]) + half for number, half in enumerate(halves, 1)]
    first, second = (b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)
    expected = p3_to_srgb(np.array([60, 160, 60]))
    np.testing.assert_allclose(decode_image(data[:2] + second + first + data[2:], 16, 16)[0, 0], expected, atol=3)
    np.testing.assert_allclose(decode_image(data[:2] + first + data[2:], 16, 16)[0, 0], (60, 160, 60), atol=3)
