"""Any bytes read as a feed: products or a `FeedError`, and nothing else.

Bytes at random rarely get behind a header, so three kinds are drawn: texts made of what CSV and JSON are made of, lines
of JSON of any shape, and Parquet files with some bytes exchanged. How many of each follows from hypothesis's profile.
"""

import gzip
import json
import struct
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.feed import FeedError, detect_preset, open_feed
from catalogue.product import Product, parse_path

EXAMPLES = 4 * settings.default.max_examples
HEADER = "id,images,title,category,split"

pieces = st.sampled_from(
    [*'",\n\r\t |>&;\\{}[]:0', "\r\n", '""', "\x00", "\udcff", "é", "\u200b", "train", "id", "NaN", "../", "https://x/"]
)
texts = st.lists(pieces, max_size=60).map("".join)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["Home > A", "a.jpg"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner),
    max_leaves=6,
)
json_rows = st.dictionaries(st.sampled_from(["id", "images", "title", "category", "split", "brand", "x"]), json_values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(path, content, **options):
    """Reads bytes as a feed by every way in; checks what comes out."""
    path.write_bytes(content)
    try:
        detect_preset(path)
        feed = open_feed(path, on_error="skip", **options)
        products = list(feed)
        feed.fingerprint()
        feed.class_report().warnings()
    except FeedError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert path.name in refusal
        refusal.encode()  # can be printed
        return
    assert all(isinstance(product, Product) for product in products)
    assert len({product.id for product in products}) == len(products)
    assert feed.summary.products == len(products)
    assert feed.summary.rows == len(products) + feed.summary.skipped.total()
    for product in products:
        assert product.id == product.id.strip() != ""
        assert parse_path(" > ".join(product.category)) == product.category
        "".join((product.id, product.title, *product.category, *product.entities.values())).encode()
    if not feed.summary.skipped:
        assert list(open_feed(path, **options)) == products


@settings(deadline=None, max_examples=EXAMPLES)
@given(body=texts, ending=st.sampled_from(["csv", "tsv"]), merge_case=st.booleans())
def test_any_text_under_a_header(folder, body, ending, merge_case):
    header = HEADER if ending == "csv" else HEADER.replace(",", "\t")
    content = f"{header}\n{body}".encode(errors="surrogateescape")
    read(folder / f"feed.{ending}", content, merge_case=merge_case)


@settings(deadline=None, max_examples=EXAMPLES)
@given(content=st.binary(max_size=200) | texts.map(lambda text: text.encode(errors="surrogateescape")), data=st.data())
def test_any_bytes_under_any_ending(folder, content, data):
    ending = data.draw(st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.zst", "csv.bz2"]))
    if ending == "csv.gz" and data.draw(st.booleans()):
        content = gzip.compress(content)
    read(folder / f"feed.{ending}", content)


@settings(deadline=None, max_examples=EXAMPLES)
@given(rows=st.lists(json_rows | json_values, max_size=6))
def test_any_json_a_line(folder, rows):
    lines = [json.dumps({"id": "0", "images": [], "title": "", "category": ""}), *map(json.dumps, rows)]
    read(folder / "feed.jsonl", "\n".join(lines).encode())


@pytest.fixture(scope="module")
def parquet():
    """A Parquet feed with every kind of cell, as bytes."""
    table = pa.table(
        {
            "id": pa.array([Decimal(i) for i in range(40)], pa.decimal128(9, 2)),
            "images": [[b"image %d" % i, None] for i in range(40)],
            "title": [None if i % 7 == 0 else f"Mug {i}" for i in range(40)],
            "category": pa.array([["Home", f"Mugs {i % 3}"] for i in range(40)]),
            "split": pa.array(["train", "test"] * 20).dictionary_encode(),
            "brand": pa.array([b"Acme"] * 40, pa.binary()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=16, compression="none")
    return sink.getvalue().to_pybytes()


@settings(deadline=None, max_examples=EXAMPLES)
@given(data=st.data())
def test_parquet_with_exchanged_bytes(folder, parquet, data):
    (footer,) = struct.unpack("<I", parquet[-8:-4])
    # Half of the bytes exchanged lie in the footer, which is what the reader trusts.
    places = st.integers(0, len(parquet) - 1) | st.integers(len(parquet) - 8 - footer, len(parquet) - 1)
    content = bytearray(parquet)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = byte
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    read(folder / "feed.parquet", bytes(content[:end]))
