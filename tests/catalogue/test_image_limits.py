"""What an image may cost: refused from its header where it is too much, bounded in memory where it is not."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from catalogue.images import MAX_BYTES, ImageError, decode_image, open_image
from tests.catalogue.pictures import chunk, encoded, photo, quarters, webp_bomb, with_chunk


def test_too_many_bytes_are_refused_with_both_numbers():
    with pytest.raises(ImageError, match=rf"{MAX_BYTES + 1} bytes.*{MAX_BYTES}"):
        decode_image(b"\xff\xd8\xff" + b"\0" * (MAX_BYTES - 2), 32, 32)


def bomb(format, width, height):
    """Headers that declare width x height pixels, with no pixels behind them: only a refusal by size can name them."""
    small = encoded(Image.new("RGB", (16, 16)), format)
    if format == "PNG":
        header = struct.pack(">II", width, height) + small[24:29]
        small = small[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + small[33:]
        return small[: small.index(b"IDAT") + 4]
    if format == "GIF":
        return small.replace(struct.pack("<HH", 16, 16), struct.pack("<HH", width, height))
    if format == "BMP":
        return small[:18] + struct.pack("<ii", width, height) + small[26:54]
    frame = small.index(b"\xff\xc0")
    return small[: frame + 5] + struct.pack(">HH", height, width) + small[frame + 9 : small.index(b"\xff\xda")]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_declared_pixels_are_refused_before_any_is_decoded(format, width, height):
    most = 64_000_000 if format == "JPEG" else 25_000_000
    with pytest.raises(ImageError, match=f"at most {most} are taken") as caught:
        decode_image(bomb(format, width, height), 32, 32)
    assert (caught.value.reason, caught.value.format) == ("too large", format)


def test_a_jpeg_of_a_great_many_scans_is_refused():
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    scan = data[first : data.index(b"\xff\xda", first + 2)]
    with pytest.raises(ImageError, match="scans"):
        decode_image(data[:first] + scan * 200 + data[first:], 32, 32)


def test_a_large_progressive_jpeg_of_many_scans_is_refused():
    data = encoded(Image.new("L", (7000, 6000)), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    scan = data[first : data.index(b"\xff\xda", first + 2)]
    with pytest.raises(ImageError, match="scans; at most 15 are taken of 7000x6000 pixels"):
        decode_image(data[:first] + scan * 20 + data[first:], 32, 32)


def test_a_file_of_a_great_many_parts_is_refused():
    jpeg = encoded(quarters(), "JPEG")
    for data in (with_chunk(chunk(b"tEXt", b"") * 60_000), jpeg[:2] + b"\xff\xfe\0\2" * 60_000 + jpeg[2:]):
        with pytest.raises(ImageError, match="more than 50000 parts"):
            decode_image(data, 32, 32)


def test_the_header_tells_what_decoding_costs():
    image = photo(80, 120)
    weights = {"PNG": 80 * 120, "WEBP": 80 * 120, "AVIF": 80 * 120, "JPEG": 80 * 120 // 8}
    for format, weight in weights.items():
        opened = open_image(encoded(image, format))
        assert (opened.height, opened.width, opened.weight) == (80, 120, weight)
    assert open_image(encoded(image, "JPEG", progressive=True)).weight == 80 * 120


def test_a_webp_of_forty_bytes_that_declares_63_megapixels_is_refused():
    assert (decode_image(webp_bomb(1000, 800), 8, 8)[4] == 0).all()
    data = webp_bomb(16_380, 3_846)
    assert len(data) < 50
    with pytest.raises(ImageError, match="WEBP declares 16380x3846 pixels; at most 16777216 are taken"):
        decode_image(data, 224, 224)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "progressive JPEG", "AVIF"])
def test_the_largest_image_of_a_kind_takes_less_than_300_mb(kind, tmp_path):
    # In a process of its own: a peak never falls again.
    size = {"WEBP": (4096, 4096), "progressive JPEG": (8064, 6048)}.get(kind, (5000, 5000))
    program = (
        "import resource, sys; from catalogue.images import decode_image\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode_image(data, 224, 224)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    file = tmp_path / "image"
    if kind == "WEBP":
        file.write_bytes(webp_bomb(*size))
    elif kind == "progressive JPEG":
        file.write_bytes(encoded(Image.new("RGB", size), "JPEG", progressive=True, subsampling=0))
    else:
        options = {"speed": 10} if kind == "AVIF" else {"compress_level": 1}
        file.write_bytes(encoded(Image.new("RGBA", size, (10, 20, 30, 128)), kind, **options))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(file)]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(output.stdout) < 300_000
