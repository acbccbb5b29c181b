"""The decoder under mutated files: what is valid is shown, what is not is refused, nothing crashes or takes long.

CPU time of the thread and peak memory of the process are looked at, which do not depend on what else runs here.
"""

import contextlib
import resource
import struct
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalogue.images import ImageError, decode_image
from tests.catalogue.pictures import chunk, riff
from tests.fuzz.effort import EFFORT
from tests.fuzz.image_corpus import mutated_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SEED = 14
MAX_SECONDS = 1.0
MAX_KIBIBYTES = 300 * 1000


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_KIBIBYTES


def decode_in_time(data, height, width):
    start = time.thread_time()
    try:
        return decode_image(data, height, width)
    finally:
        assert time.thread_time() - start < MAX_SECONDS


def test_mutated_valid_images_are_shown_as_what_went_into_them():
    wrong, count = [], 100 * EFFORT
    for image in mutated_images(count, SEED):
        try:
            shown = decode_in_time(image.data, *image.reference.shape[:2])
        except ImageError as error:
            wrong.append(f"{image.name}: {error}")
            continue
        difference = np.abs(shown.astype(int) - image.reference).mean()
        if difference > image.tolerance:
            wrong.append(f"{image.name}: {difference:.2f}")
    assert len(wrong) <= count // 100, "\n".join(wrong)


def test_flipped_bytes_give_a_picture_or_a_refusal():
    chance = np.random.default_rng(SEED)
    files = [image.data for image in mutated_images(100, SEED + 1)]
    for number in range(500 * EFFORT):
        data = bytearray(files[number % len(files)])
        for place in chance.integers(0, len(data), chance.integers(1, 9)):
            data[place] = chance.integers(256)
        with contextlib.suppress(ImageError):
            assert decode_in_time(bytes(data), 32, 24).shape == (32, 24, 3)


def jpeg_segments(segments):
    return b"\xff\xd8" + b"".join(
        b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments
    )


def bmff(boxes):
    return b"".join(struct.pack(">I", 8 + len(body)) + name + body for name, body in boxes)


BODIES = st.binary(max_size=64)
PNG_NAMES = [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt"]
WEBP_NAMES = [b"VP8X", b"VP8L", b"VP8 ", b"EXIF", b"ICCP", b"ANMF", b"ALPH"]
SIGNATURES = [b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"\xff\xd8\xff", b""]
SIDES, DEPTHS, COLOUR_TYPES = st.integers(0, 70), st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 6)
PNG_HEADERS = st.builds(struct.pack, st.just(">IIBBBBB"), SIDES, SIDES, DEPTHS, COLOUR_TYPES, *[st.just(0)] * 3)


def parts(names):
    return st.lists(st.tuples(names, BODIES), max_size=8)


def png_of(header, chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [(b"IHDR", header), *chunks])


def heif_of(brand, boxes):
    return bmff([(b"ftyp", brand + bytes(4) + brand), (b"meta", bytes(4) + bmff(boxes))])


FILES = st.one_of(
    st.builds(png_of, PNG_HEADERS, parts(st.sampled_from(PNG_NAMES))),
    parts(st.sampled_from(WEBP_NAMES)).map(lambda chunks: riff(*chunks)),
    parts(st.integers(0xC0, 0xFE)).map(jpeg_segments),
    st.builds(heif_of, st.sampled_from([b"avif", b"heic", b"mif1"]), parts(st.binary(min_size=4, max_size=4))),
    st.tuples(st.sampled_from(SIGNATURES), st.binary(max_size=300)).map(b"".join),
)


@given(FILES, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=300 * EFFORT, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_anything_built_like_an_image_gives_a_picture_or_a_refusal(data, height, width):
    with contextlib.suppress(ImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_in_time(data, height, width).shape == (height, width, 3)
