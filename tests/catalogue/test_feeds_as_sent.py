"""Feeds as people send them: what nobody maps, categories that look alike, ids of every type, files of every kind."""

import bz2
import gzip
import json
import os
import unicodedata
import uuid
from collections import Counter
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogue.cells import text_of
from catalogue.feed import FeedError, detect_preset, open_feed, write_feed
from catalogue.product import Product, split_of

HEADER = "id,images,title,category"


def text(path, content):
    path.write_bytes(content.encode())
    return path


def table(path, **columns):
    pq.write_table(pa.table({"images": pa.nulls(2), "title": ["Mug", "Cap"], "category": ["A", "B"]} | columns), path)
    return path


# What is not mapped stops nothing


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("additional_image_link,additional_image_link", "x,y"),
        (",", ","),
        (",", ""),
        ("", "x"),
        ("notes", "\udcff"),
        ("gr\udcf6sse", "x"),
        ("description", "d" * 300_000),
    ],
)
def test_columns_that_are_not_mapped_stop_nothing(tmp_path, header, row):
    content = f"{HEADER},{header}\n1,,Mug,Home > Mugs,{row}\n".removesuffix(",\n" if row == "" else "")
    path = tmp_path / "feed.csv"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert [(p.id, p.title) for p in open_feed(path)] == [("1", "Mug")]


def test_rows_of_commas_are_no_rows(tmp_path):
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER}\n1,,Mug,A\n,,,\n ,,\t,\n,\n2,,Cap,B\n,,,,,,\n"))
    assert [p.id for p in feed] == ["1", "2"]
    assert (feed.summary.rows, feed.summary.skipped) == (2, Counter())


def test_empty_cells_behind_the_last_column_are_read_over_and_others_are_not(tmp_path):
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER}\n1,,Mug,A,,\n2,,Mug, blue,A\n"), on_error="skip")
    assert [p.id for p in feed] == ["1"]
    assert feed.summary.skipped == {"wrong number of fields": 1}


def test_a_mapped_column_that_is_there_twice_is_refused_by_name(tmp_path):
    arrays = [pa.array([value]) for value in ("1", None, "one", "A", "two", "x", "y")]
    names = ["id", "images", "title", "category", "title", "other", "other"]
    pq.write_table(pa.Table.from_arrays(arrays, names), tmp_path / "feed.parquet")
    with pytest.raises(FeedError, match=r"feed\.parquet has column 'title' twice"):
        open_feed(tmp_path / "feed.parquet")
    assert next(iter(open_feed(tmp_path / "feed.parquet", title=""))).id == "1"
    with pytest.raises(FeedError, match=r"feed\.csv has column 'title' twice"):
        open_feed(text(tmp_path / "feed.csv", f"{HEADER},title\n1,,a,A,b\n"))


# Quotes that swallow rows


@pytest.mark.parametrize(
    ("closing", "lost"),
    [
        ('900,,"Cap, blue",Hats > Caps\n', 51),  # closes the quote where none may close
        ('900,,Monitor 24",Hats > Caps\n', 51),  # closes it in the right place: a title of 51 lines
    ],
)
def test_rows_that_a_quote_swallowed_are_counted_and_its_line_is_named(tmp_path, closing, lost):
    plain = "".join(f"{i},,Cap {i},Hats > Caps\n" for i in range(100, 149))
    path = text(
        tmp_path / "feed.csv",
        f'{HEADER}\n1,,"Two\nlines",A\n2,,"Unclosed,Home > Mugs\n{plain}{closing}3,,Cup,Home > Cups\n',
    )
    with pytest.raises(FeedError, match=rf"row 2: .*{lost} rows lost to a quote that opens in line 4"):
        list(open_feed(path))
    feed = open_feed(path, on_error="skip")
    assert [(p.id, p.title) for p in feed] == [("1", "Two\nlines"), ("3", "Cup")]
    assert feed.summary.skipped == {"bad CSV": lost}
    assert feed.summary.rows == 2 + lost


def test_the_line_named_is_that_of_the_quote_that_swallows_not_of_its_record(tmp_path):
    content = f'{HEADER}\n1,,"A title\nof two lines","Unclosed > Mugs\n2,,Cap,Caps\n3,,Cap,Caps\n4,,"Cap, blue",Caps\n'
    with pytest.raises(FeedError, match="4 rows lost to a quote that opens in line 3"):
        list(open_feed(text(tmp_path / "feed.csv", content)))


def test_rows_up_to_the_end_of_the_file_are_counted(tmp_path):
    plain = "".join(f"{i},,Cap {i},Hats > Caps\n" for i in range(100, 130))
    feed = open_feed(text(tmp_path / "feed.csv", f'{HEADER}\n1,,"Unclosed,A\n{plain}'), on_error="skip")
    assert list(feed) == []
    assert feed.summary.skipped == {"bad CSV": 31}


def test_prose_of_many_lines_with_commas_is_a_title(tmp_path):
    title = "A mug, of clay, red\nThe mug, of glass, blue\nOne, two, three, or four\nEnd"
    (found,) = open_feed(text(tmp_path / "feed.csv", f'{HEADER}\n1,,"{title}",A\n'))
    assert found.title == title


# Categories that look alike


TWINS = [
    "Home > Café",
    unicodedata.normalize("NFD", "Home > Café"),
    "Home\u00a0> Café",
    "Home > Café\u200b",
    "Ho\u200bme > \ufeffCafé",
    "Ho\u00adme > Ca\u200dfé",
    "Home &gt; Caf&eacute;",
    "Home &amp;gt; Caf&#233;",
    "Home>Café",
    "Home> Café",
    "Home\t>\tCafé ",
    "\u3000Home  >  Café",
]


def test_categories_that_look_alike_are_one(tmp_path):
    rows = [{"id": str(i), "images": [], "title": "", "category": label} for i, label in enumerate(TWINS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "feed.parquet")
    assert {p.category for p in open_feed(tmp_path / "feed.parquet")} == {("Home", "Café")}


def test_entities_that_look_alike_are_one(tmp_path):
    colours = ["Red", "Red ", "Re\u200bd", "\u00a0Red", "&#82;ed"]
    rows = "".join(f"{i},,t,A,{colour}\n" for i, colour in enumerate(colours))
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER},base_colour\n{rows}"))
    assert {p.entities["base_colour"] for p in feed} == {"Red"}


def test_labels_in_columns_and_lists_have_one_spelling_too(tmp_path):
    pq.write_table(
        pa.table({"id": ["1"], "top": ["Home\u00a0"], "low": ["Caf&eacute;"], "list": [["Home", "Cafe\u0301"]]}),
        tmp_path / "feed.parquet",
    )
    for columns in (("top", "low"), "list"):
        (found,) = open_feed(tmp_path / "feed.parquet", image="", title="", category=columns)
        assert found.category == ("Home", "Café")


@pytest.mark.parametrize(
    ("labels", "category"),
    [(["Home", None], ("Home",)), ([None], ()), ([], ()), (["Home", "", "NaN"], ("Home",)), ([None, "Mugs"], None)],
)
def test_nothing_in_a_list_of_labels_is_no_label(tmp_path, labels, category):
    rows = [{"id": "1", "images": [], "title": "", "category": ["Other"]}]
    rows.append({"id": "2", "images": [], "title": "", "category": labels})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "feed.parquet")
    if category is None:
        with pytest.raises(FeedError, match="row 2: label 1 is empty above a label"):
            list(open_feed(tmp_path / "feed.parquet"))
    else:
        assert [p.category for p in open_feed(tmp_path / "feed.parquet")] == [("Other",), category]


def test_twins_in_case_are_named_and_joined_on_request(tmp_path):
    labels = [*["Home > Mugs"] * 3, *["home > Mugs"] * 2, "Home > MUGS", *["home > Cups"] * 9]
    rows = "".join(f"{i},,t,{label}\n" for i, label in enumerate(labels))
    path = text(tmp_path / "feed.csv", f"{HEADER}\n{rows}")
    report = open_feed(path).class_report()
    assert report.twins == (((("Home", "Mugs"), 3), (("home", "Mugs"), 2), (("Home", "MUGS"), 1)),)
    assert any("'Home > Mugs' (3), 'home > Mugs' (2), 'Home > MUGS' (1)" in said for said in report.warnings())
    # At each level the spelling that most products have: "home" 11 times, "Mugs" 5.
    merged = open_feed(path, merge_case=True)
    assert Counter(p.category for p in merged) == {("home", "Mugs"): 6, ("home", "Cups"): 9}
    assert merged.class_report().twins == ()


# Ids and texts of every type


@pytest.mark.parametrize(
    ("ids", "read"),
    [
        (pa.array([Decimal("7.00"), Decimal("100000000000000000000")], pa.decimal128(30, 2)), ["7", "1" + "0" * 20]),
        (pa.array([Decimal("7.50"), Decimal("0.25")], pa.decimal128(9, 2)), ["7.5", "0.25"]),
        (pa.array([7.0, 1e15]), ["7", "1000000000000000"]),
        (pa.array([7.0, 8.0], pa.float32()), ["7", "8"]),
        (pa.array([b"sku1", "n\u00e9".encode()]), ["sku1", "n\u00e9"]),
        (pa.array([b"a", b"b"], pa.large_binary()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (
            pa.array([uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes], pa.uuid()),
            [str(uuid.UUID(int=i)) for i in (1, 2)],
        ),
    ],
)
def test_ids_of_every_type_are_text(tmp_path, ids, read):
    path = table(tmp_path / "feed.parquet", id=ids, title=ids)
    assert [p.id for p in open_feed(path)] == read
    assert [p.title for p in open_feed(path)] == read


def test_bytes_that_are_not_utf8_cost_their_row(tmp_path):
    feed = open_feed(table(tmp_path / "feed.parquet", id=pa.array([b"1", b"\xff"])), on_error="skip")
    assert [p.id for p in feed] == ["1"]
    assert feed.summary.skipped == {"not UTF-8": 1}


def test_ids_with_spaces_around_them_are_one_product_in_one_split(tmp_path):
    spellings = ["7", "7 ", " 7", "\u00a07", "7\u200b ", "7\t", "\u30007\x1c"]
    rows = "".join(f"{spelling},,Mug,A\n" for spelling in spellings)
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER}\n{rows}"), on_error="skip")
    assert [(p.id, p.split) for p in feed] == [("7", split_of("7"))]
    assert feed.summary.skipped == {"duplicate id": 6}


def test_ids_in_two_normalisations_are_one_product(tmp_path):
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER}\ncafé,,Mug,A\ncafe\u0301,,Mug,A\n"), on_error="skip")
    assert len(list(feed)) == 1
    assert feed.summary.skipped == {"duplicate id": 1}


@pytest.mark.parametrize(
    "nothing", ["NaN", "nan", "-nan", "#N/A", "<NA>", "null", " NaN ", float("nan"), Decimal("NaN"), None]
)
def test_words_and_numbers_that_mean_nothing_are_no_text(nothing):
    assert text_of({"title": nothing}, "title") is None


def test_splits_are_read_in_any_case(tmp_path):
    feed = open_feed(text(tmp_path / "feed.csv", f"{HEADER},split\n1,,a,A,Train\n2,,b,A, TEST\n3,,c,A,Validation\n"))
    assert [p.split for p in feed] == ["train", "test", "val"]


# Image names


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_feed", ["NFC", "NFD"])
def test_images_are_found_in_either_normalisation(tmp_path, on_disk, in_feed):
    folder = tmp_path / unicodedata.normalize(on_disk, "été")
    folder.mkdir()
    (folder / unicodedata.normalize(on_disk, "café.jpg")).write_bytes(b"x")
    name = unicodedata.normalize(in_feed, "été/café.jpg")
    (found,) = open_feed(text(tmp_path / "feed.csv", f"{HEADER}\n1,{name},Mug,A\n"))
    assert found.images == (b"x",)


def test_a_link_in_another_normalisation_does_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    folder = tmp_path / "feed"
    folder.mkdir()
    (folder / unicodedata.normalize("NFD", "café.jpg")).symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(FeedError, match="row 1"):
        list(open_feed(text(folder / "feed.csv", f"{HEADER}\n1,café.jpg,Mug,A\n")))


@pytest.mark.parametrize(
    ("name", "images"), [("img\\a.jpg", (b"x",)), (".\\img\\a.jpg", (b"x",)), ("img\\..\\..\\s.jpg", None)]
)
def test_backslashes_separate_folders(tmp_path, name, images):
    (tmp_path / "s.jpg").write_bytes(b"secret")
    folder = tmp_path / "feed"
    (folder / "img").mkdir(parents=True)
    (folder / "img" / "a.jpg").write_bytes(b"x")
    feed = open_feed(text(folder / "feed.csv", f"{HEADER}\n1,{name},Mug,A\n"))
    if images is None:
        with pytest.raises(FeedError, match="leads out of the feed's folder"):
            list(feed)
    else:
        assert next(iter(feed)).images == images


def test_image_names_may_come_as_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    feed = open_feed(table(tmp_path / "feed.parquet", id=["1", "2"], images=[b"a.jpg", b"\xff\xd8.jpg"]))
    assert [p.images for p in feed] == [(b"x",), (b"\xff\xd8.jpg",)]


def test_an_image_url_gets_a_sentence_until_the_file_is_there(tmp_path):
    url = "https://shop.example/img/red%20mug.jpg?v=12"
    path = text(tmp_path / "feed.csv", f"{HEADER}\n1,{url},Mug,A\n")
    with pytest.raises(
        FeedError, match=r"row 1: .*is a URL.*not fetched.*wget.*'shop\.example/img/red%20mug\.jpg\?v=12'"
    ):
        list(open_feed(path))
    feed = open_feed(path, on_error="skip")
    assert list(feed) == []
    assert feed.summary.skipped == {"image is a URL": 1}
    (tmp_path / "shop.example" / "img").mkdir(parents=True)
    (tmp_path / "shop.example" / "img" / "red mug.jpg?v=12").write_bytes(b"x")
    assert next(iter(open_feed(path))).images == (b"x",)


@pytest.mark.parametrize("url", ["https://shop.example/feed.csv", "s3://bucket/feed.parquet"])
def test_a_feed_at_a_url_gets_a_sentence(url):
    with pytest.raises(FeedError, match="a URL; feeds are read from disk: download it"):
        open_feed(url)
    with pytest.raises(FeedError, match="a URL"):
        detect_preset(url)


# Kinds of files


ROW = {"id": "1", "images": None, "title": "Mug, \u201cred\u201d", "category": "Home > Mugs", "brand": "Acme"}
EXPECTED = Product("1", (), "Mug, \u201cred\u201d", ("Home", "Mugs"), {"brand": "Acme"}, split_of("1"))
CSV = 'id,images,title,category,brand\n1,,"Mug, \u201cred\u201d",Home > Mugs,Acme\n'
TSV = "id\timages\ttitle\tcategory\tbrand\n1\t\tMug, \u201cred\u201d\tHome > Mugs\tAcme\n"
LINES = json.dumps(ROW) + "\n\n"


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("feed.tsv", TSV.encode()),
        ("feed.csv.gz", gzip.compress(CSV.encode())),
        ("feed.csv.zst", zstd(CSV.encode())),
        ("feed.csv.bz2", bz2.compress(CSV.encode())),
        ("feed.tsv.gz", gzip.compress(TSV.encode())),
        ("feed.jsonl", LINES.encode()),
        ("feed.ndjson", LINES.encode("utf-8-sig")),
        ("feed.jsonl.zst", zstd(LINES.encode())),
        ("FEED.CSV.GZ", gzip.compress(CSV.encode())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_texts_of_every_kind_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert list(open_feed(tmp_path / name)) == [EXPECTED]
    assert detect_preset(tmp_path / name) == "shelfwise"


@pytest.mark.parametrize("name", ["feed.csv.gz", "feed.csv.zst", "feed.jsonl.gz"])
def test_cut_compressed_texts_are_damaged(tmp_path, name):
    content = os.urandom(30_000).hex()
    lines = f"{HEADER}\n" + "".join(f"{i},,{content[i : i + 500]},A\n" for i in range(5000))
    if "jsonl" in name:
        lines = "".join(json.dumps(ROW | {"id": i, "title": content[i : i + 500]}) + "\n" for i in range(5000))
    compressed = zstd(lines.encode()) if name.endswith("zst") else gzip.compress(lines.encode())
    (tmp_path / name).write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(FeedError, match=rf"{name}: damaged after line \d+"):
        list(open_feed(tmp_path / name, on_error="skip"))


def test_json_lines_may_leave_cells_out_and_bad_lines_cost_themselves(tmp_path):
    lines = [
        json.dumps(ROW),
        '{"id": 2, "title": NaN, "images": ["a.jpg"], "category": ["Home", "Mugs"]}',
        '{"id": "3"',
        "[4]",
        '{"id": "5", "id": "6"}',
        '{"id": "7", "note": 1, "note": 2, "season": "Fall"}',
        '{"id": "8", "title": "\\ud800"}',
        "[" * 100_000,
    ]
    (tmp_path / "a.jpg").write_bytes(b"x")
    path = text(tmp_path / "feed.jsonl", "\n".join(lines))
    feed = open_feed(path, on_error="skip")
    assert list(feed) == [
        EXPECTED,
        Product("2", (b"x",), "", ("Home", "Mugs"), {}, split_of("2")),
        Product("7", (), "", (), {"season": "Fall"}, split_of("7")),
    ]
    assert feed.summary.skipped == {"bad JSON": 4, "not UTF-8": 1}
    with pytest.raises(FeedError, match=r"feed\.jsonl, row 3: not JSON.*\(line 3\)"):
        list(open_feed(path))


def test_a_key_that_no_row_has_is_a_missing_column(tmp_path):
    with pytest.raises(FeedError, match=r"feed\.jsonl: no column 'category'; the file has id, images, title"):
        open_feed(text(tmp_path / "feed.jsonl", '{"id": 1, "images": [], "title": "t"}\n'))


def test_a_folder_of_part_files_is_one_feed(tmp_path):
    folder = tmp_path / "feed"
    folder.mkdir()
    products = [Product(str(i), (b"photo",), f"Mug {i}", ("A",), {}, "train") for i in range(6)]
    for part in (2, 0, 1):
        write_feed(folder / f"part-0000{part}.parquet", products[2 * part : 2 * part + 2])
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.parquet.crc").touch()
    (folder / "_metadata.parquet").touch()
    feed = open_feed(folder)
    assert list(feed) == products
    assert detect_preset(folder) == "shelfwise"
    write_feed(folder / "part-00003.parquet", products[:1])
    with pytest.raises(FeedError, match=r"part-00003\.parquet, row 1: id '0' was seen before"):
        list(open_feed(folder))


def test_parts_name_images_relative_to_their_folder_and_need_every_mapped_column(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    text(tmp_path / "1.csv", f"{HEADER},extra\n1,a.jpg,Mug,A,x\n")
    text(tmp_path / "2.csv", f"{HEADER}\n2,a.jpg,Mug,A\n")
    assert [p.images for p in open_feed(tmp_path)] == [(b"x",)] * 2
    text(tmp_path / "3.csv", "id,images,title\n3,,Mug\n")
    with pytest.raises(FeedError, match=r"3\.csv: no column 'category'"):
        open_feed(tmp_path)


def test_folders_without_parts_or_with_several_kinds_are_refused(tmp_path):
    with pytest.raises(FeedError, match=r"part files.*found none"):
        open_feed(tmp_path)
    text(tmp_path / "1.csv", HEADER)
    text(tmp_path / "2.jsonl", "{}")
    with pytest.raises(FeedError, match=r"found \.csv, \.jsonl"):
        open_feed(tmp_path)


# Fingerprints


@pytest.fixture
def feed_on_disk(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    return text(tmp_path / "feed.csv", f"{HEADER}\n1,a.jpg,Mug,A\n2,b.jpg,Mug,A\n")


def test_a_fingerprint_stays_while_nothing_changes(feed_on_disk):
    assert open_feed(feed_on_disk).fingerprint() == open_feed(feed_on_disk).fingerprint()
    (feed_on_disk.parent / "unrelated.jpg").write_bytes(b"x")
    assert len({open_feed(feed_on_disk).fingerprint() for _ in range(2)}) == 1


def touched_later(path, content):
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@pytest.mark.parametrize(
    "change",
    [
        lambda feed: touched_later(feed, feed.read_bytes().replace(b"Mug", b"Cup")),
        lambda feed: touched_later(feed.parent / "a.jpg", b"y"),
        lambda feed: touched_later(feed.parent / "b.jpg", b"y"),
        lambda feed: (feed.parent / "a.jpg").unlink(),
    ],
    ids=["feed", "image", "new image", "image gone"],
)
def test_a_fingerprint_changes_with_the_files(feed_on_disk, change):
    before = open_feed(feed_on_disk).fingerprint()
    change(feed_on_disk)
    assert open_feed(feed_on_disk).fingerprint() != before


def test_a_fingerprint_changes_with_the_reading(feed_on_disk):
    ways = [{}, {"title": ""}, {"title": "category"}, {"merge_case": True}, {"on_error": "skip"}, {"splits": ["train"]}]
    assert len({open_feed(feed_on_disk, **way).fingerprint() for way in ways}) == len(ways)


def test_a_fingerprint_changes_with_a_part_and_with_the_lookup_table(tmp_path):
    write_feed(tmp_path / "1.parquet", [EXPECTED])
    before = open_feed(tmp_path).fingerprint()
    write_feed(tmp_path / "2.parquet", [])
    assert open_feed(tmp_path).fingerprint() != before
