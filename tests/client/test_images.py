"""Every form in which a caller may hold an image arrives at the server as the picture that the caller sees."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from catalogue.images import decode_image
from catalogue.images.limits import most_pixels
from client import MAX_IMAGE_BYTES, InvalidInput, encode_image
from client.images import MAX_PIXELS
from tests.catalogue.pictures import display_p3


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def look(image: Image.Image) -> np.ndarray:
    """Its colours and transparency; modes without transparency convert to RGBA by way of RGB only."""
    return np.asarray(image.convert("RGB" if image.mode in ("CMYK", "YCbCr", "HSV") else "RGBA").convert("RGBA"))


@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
            lambda size: st.sampled_from([size, (*size, 1), (*size, 3), (*size, 4)])
        ),
    )
)
def test_array_decodes_back_identical(pixels: np.ndarray) -> None:
    decoded = decode(encode_image(pixels))
    expected = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    np.testing.assert_array_equal(decoded, expected)


def test_array_that_is_not_contiguous_decodes_back_identical() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    for view in (pixels[:, ::-1], pixels[::2], pixels.transpose(1, 0, 2), pixels[..., ::-1]):
        np.testing.assert_array_equal(decode(encode_image(view)), view)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], r"uint8 \[3, 4, 2\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), r"uint8 \[4\]"),
        (np.array(4, np.uint8), r"uint8 \[\]"),
    ],
)
def test_array_that_is_no_image_is_refused_with_its_dtype_and_shape(pixels: np.ndarray, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        encode_image(pixels)


def test_files_and_bytes_travel_unchanged(tmp_path: Path) -> None:
    data = bytes(range(256))
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for image in (path, str(path), data, bytearray(data), memoryview(data)):
        assert encode_image(image) == data


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.jpg: No such file"):
        encode_image(tmp_path / "absent.jpg")
    with pytest.raises(InvalidInput, match="directory"):
        encode_image(tmp_path)
    with pytest.raises(InvalidInput, match="null byte"):
        encode_image("a\0b.jpg")


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="not float"):
        encode_image(float("nan"))  # type: ignore[arg-type]  # how pandas spells a missing image


def test_image_above_the_limit_is_refused_and_one_at_the_limit_is_not(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(MAX_IMAGE_BYTES))
    assert len(encode_image(path)) == MAX_IMAGE_BYTES
    with path.open("ab") as file:
        file.write(b"\0")
    for image in (path, bytes(MAX_IMAGE_BYTES + 1)):
        with pytest.raises(InvalidInput, match=f"the limit is {MAX_IMAGE_BYTES}"):
            encode_image(image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pillow_image_of_any_mode_keeps_its_look(mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 17, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    encoded = Image.open(io.BytesIO(encode_image(image)))
    np.testing.assert_array_equal(look(encoded), look(image))


def test_sixteen_bit_pillow_image_keeps_its_depth() -> None:
    pixels = np.arange(12 * 17, dtype=np.uint16).reshape(12, 17) * 300
    np.testing.assert_array_equal(decode(encode_image(Image.fromarray(pixels))), pixels)


def test_numbers_in_a_pillow_image_are_kept_or_refused() -> None:
    pixels = np.arange(12 * 17, dtype=np.int32).reshape(12, 17) * 300
    np.testing.assert_array_equal(decode(encode_image(Image.fromarray(pixels))), pixels)
    for wrong in (pixels - 1, pixels * 2, (pixels / pixels.max()).astype(np.float32)):
        with pytest.raises(InvalidInput, match="whole numbers from 0 to 65535"):
            encode_image(Image.fromarray(wrong))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_a_pillow_image_is_applied(orientation: int) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, exif=exif, **options)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        np.testing.assert_array_equal(decode_image(encode_image(Image.open(file)), *upright.shape[:2]), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0??", b"\0\x08\0\x02\x01\x12\0\x03\0", b"MM\0*\0\0\0\x08\0\x09\x01\x12"])
def test_pillow_image_with_unreadable_exif_arrives_as_it_is(exif: bytes) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (8, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(decode_image(encode_image(Image.open(file)), 8, 16), pixels)


def test_colour_profile_of_a_pillow_image_travels_with_it() -> None:
    image = Image.new("RGB", (8, 8), (60, 160, 60))
    file = io.BytesIO()
    image.save(file, "PNG", icc_profile=display_p3())
    direct = decode_image(file.getvalue(), 8, 8)
    assert (direct[0, 0] != (60, 160, 60)).any()
    np.testing.assert_array_equal(decode_image(encode_image(Image.open(file)), 8, 8), direct)


def test_array_or_pillow_image_of_more_pixels_than_the_server_takes_is_refused() -> None:
    for image in (np.zeros((5001, 5000), np.uint8), Image.new("L", (5000, 5001))):
        with pytest.raises(InvalidInput, match="5000x5001 pixels; at most 25000000"):
            encode_image(image)
    assert most_pixels("PNG") == MAX_PIXELS


def test_pillow_image_of_a_broken_file_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    truncated = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(InvalidInput, match="Pillow cannot encode"):
        encode_image(truncated)


def test_arrays_are_encoded_without_any_imaging_library() -> None:
    program = (
        "import sys, numpy, client; client.encode_image(numpy.zeros((4, 4, 3), 'uint8'));"
        "print([name for name in ('PIL', 'simplejpeg', 'cv2', 'torch') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
