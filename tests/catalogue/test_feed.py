"""Reading and writing feeds: what comes out, what is refused, what is counted, and how much memory it takes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogue.columns import ColumnMapping
from catalogue.feed import Feed, FeedError, open_feed, write_feed
from catalogue.product import Product, split_of

ROOT = Path(__file__).parents[2]


def product(i, **changed):
    fields = {
        "id": f"p{i}",
        "images": (b"first %d" % i, b"second"),
        "title": f"Title {i}",
        "category": ("Top", "Middle", f"Leaf {i % 3}"),
        "entities": {"brand": "Acme", "season": "Fall"},
        "split": ("train", "val", "test")[i % 3],
    }
    return Product(**(fields | changed))


PRODUCTS = [
    product(0),
    product(1, title="", images=()),
    product(2, category=(), entities={}),
    product(3, title='Quotes ", commas,\nand lines', category=("Only",)),
]


def parquet(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def csv(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


# What is written is read


def test_what_is_written_is_read_back(tmp_path):
    summary = write_feed(tmp_path / "feed.parquet", PRODUCTS)
    feed = open_feed(tmp_path / "feed.parquet")
    assert list(feed) == PRODUCTS
    assert summary == feed.summary
    assert (summary.rows, summary.products, summary.skipped) == (4, 4, Counter())


def test_a_feed_is_read_as_often_as_wanted_and_sums_up_its_last_complete_pass(tmp_path):
    write_feed(tmp_path / "feed.parquet", PRODUCTS)
    feed = open_feed(tmp_path / "feed.parquet")
    assert feed.summary.rows == 0
    assert list(feed) == list(feed)
    next(iter(feed))
    assert feed.summary.rows == 4


def test_only_the_splits_asked_for_are_given_out(tmp_path):
    write_feed(tmp_path / "feed.parquet", [product(i) for i in range(9)])
    feed = open_feed(tmp_path / "feed.parquet", splits=["val", "test"])
    assert {p.split for p in feed} == {"val", "test"}
    assert (feed.summary.rows, feed.summary.products, feed.summary.skipped) == (9, 6, Counter())


def test_split_follows_from_the_id_where_the_feed_does_not_say(tmp_path):
    path = parquet(
        tmp_path / "feed.parquet", [{"id": str(i), "images": [], "title": "", "category": ""} for i in range(50)]
    )
    assert [p.split for p in open_feed(path)] == [split_of(str(i)) for i in range(50)]


def test_an_empty_feed_is_written_and_read(tmp_path):
    assert write_feed(tmp_path / "feed.parquet", []).rows == 0
    assert list(open_feed(tmp_path / "feed.parquet")) == []


def test_writing_refuses_repeated_ids_and_other_endings(tmp_path):
    with pytest.raises(FeedError, match="p1"):
        write_feed(tmp_path / "feed.parquet", [product(1), product(1)])
    with pytest.raises(FeedError, match=r"feed\.csv"):
        write_feed(tmp_path / "feed.csv", [product(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_feed(tmp_path):
    path = tmp_path / "feed.parquet"
    write_feed(path, PRODUCTS)
    before = path.read_bytes()

    def broken():
        yield product(7)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_feed(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


ENDLESS_WRITE = """
import sys
from catalogue.feed import write_feed
from catalogue.product import Product
from itertools import count
write_feed(sys.argv[1], (Product(str(i), (bytes(100_000),), "", (), {}, "train") for i in count()))
"""


def test_a_killed_write_leaves_the_old_feed(tmp_path):
    path = tmp_path / "feed.parquet"
    write_feed(path, PRODUCTS)
    before = path.read_bytes()
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITE, str(path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while sum(file.stat().st_size for file in tmp_path.iterdir()) < len(before) + 5_000_000:
            assert time.monotonic() < deadline, "the writer wrote nothing"
            assert writer.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert path.read_bytes() == before
    assert list(open_feed(path)) == PRODUCTS


# Columns


@pytest.mark.parametrize("missing", ["id", "images", "title", "category"])
def test_a_missing_column_is_named_with_the_file_and_the_columns_there_are(tmp_path, missing):
    row = {"id": "1", "images": [b"x"], "title": "t", "category": "A"}
    del row[missing]
    with pytest.raises(FeedError, match=rf"feed\.parquet.*'{missing}'.*{next(iter(row))}"):
        open_feed(parquet(tmp_path / "feed.parquet", [row]))


def test_entities_and_split_may_be_missing_unless_they_are_asked_for(tmp_path):
    path = parquet(tmp_path / "feed.parquet", [{"id": "1", "images": [b"x"], "title": "t", "category": "A"}])
    assert next(iter(open_feed(path))).entities == {}
    with pytest.raises(FeedError, match="'maker'"):
        open_feed(path, brand="maker")
    with pytest.raises(FeedError, match="'split'"):
        open_feed(path, split="split")


def test_columns_are_renamed_and_left_out_by_overrides(tmp_path):
    row = {"sku": 7, "photo": b"x", "name": "Mug", "top": "Home", "low": "Mugs", "maker": "Acme", "part": "test"}
    path = parquet(tmp_path / "feed.parquet", [row])
    overrides = {"id": "sku", "image": "photo", "title": "name", "category": ("top", "low"), "brand": "maker"}
    assert list(open_feed(path, **overrides, split="part")) == [
        Product("7", (b"x",), "Mug", ("Home", "Mugs"), {"brand": "Acme"}, "test")
    ]
    without = open_feed(path, **(overrides | {"title": "", "image": "", "category": "", "brand": None}))
    assert list(without) == [Product("7", (), "", (), {}, split_of("7"))]


def test_unknown_presets_and_overrides_are_refused_with_what_there_is(tmp_path):
    write_feed(tmp_path / "feed.parquet", PRODUCTS)
    with pytest.raises(ValueError, match=r"'shoes'.*fashion, grocery"):
        open_feed(tmp_path / "feed.parquet", "shoes")
    with pytest.raises(ValueError, match=r"'maker'.*brand"):
        open_feed(tmp_path / "feed.parquet", maker="x")
    with pytest.raises(ValueError, match="id takes one column"):
        open_feed(tmp_path / "feed.parquet", id="")
    with pytest.raises(ValueError, match="dev"):
        open_feed(tmp_path / "feed.parquet", splits=["dev"])
    with pytest.raises(ValueError, match="ignore"):
        open_feed(tmp_path / "feed.parquet", on_error="ignore")


@pytest.mark.parametrize(
    "cell",
    [
        b"x",
        [b"x"],
        [None, b"x", b""],
        {"bytes": b"x", "path": None},
        {"bytes": None, "path": "x.jpg"},
        [{"bytes": b"x", "path": "elsewhere.jpg"}],
        "x.jpg",
        ["x.jpg"],
    ],
)
def test_images_are_taken_from_every_usual_kind_of_cell(tmp_path, cell):
    (tmp_path / "x.jpg").write_bytes(b"x")
    path = parquet(tmp_path / "feed.parquet", [{"id": "1", "images": cell, "title": "", "category": ""}])
    assert next(iter(open_feed(path))).images == (b"x",)


@pytest.mark.parametrize("cell", [None, b"", [], [None], "", "NaN", float("nan"), {"bytes": None, "path": None}])
def test_a_cell_without_an_image_is_a_product_without_image(tmp_path, cell):
    rows = [{"id": "1", "images": cell, "title": "t", "category": "A"}]
    assert next(iter(open_feed(parquet(tmp_path / "feed.parquet", rows)))).images == ()


def test_a_category_may_be_a_list_of_labels(tmp_path):
    rows = [{"id": "1", "images": [], "title": "", "category": ["Home", "Mugs"]}]
    assert next(iter(open_feed(parquet(tmp_path / "feed.parquet", rows)))).category == ("Home", "Mugs")


# Bad rows


GOOD = {"id": "good", "images": b"x", "title": "t", "top": "A", "low": "B", "split": "train", "brand": "Acme"}
MAPPING = ColumnMapping(category=("top", "low"), split="split", entities={"brand": "brand"})


@pytest.mark.parametrize(
    ("changed", "reason", "message"),
    [
        ({"id": None}, "missing id", "'id' is empty"),
        ({"id": "NaN"}, "missing id", "'id' is empty"),
        ({"id": " "}, "missing id", "'id' is empty"),
        ({"id": "good"}, "duplicate id", "'good'"),
        ({"split": "dev"}, "unknown split", "'dev'"),
        ({"top": None}, "bad category", "'top' is empty above"),
        ({"low": "B > C"}, "bad category", "separator"),
        ({"low": "B\nC"}, "bad category", "line break"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, changed, reason, message):
    rows = [GOOD, {**GOOD, "id": "bad", **changed}, {**GOOD, "id": "last"}]
    path = parquet(tmp_path / "feed.parquet", rows)
    with pytest.raises(FeedError, match=rf"feed\.parquet, row 2: .*{message}"):
        list(Feed(path, MAPPING))
    feed = Feed(path, MAPPING, on_error="skip")
    assert [p.id for p in feed] == ["good", "last"]
    assert feed.summary.skipped == {reason: 1}
    assert (feed.summary.rows, feed.summary.products) == (3, 2)


@pytest.mark.parametrize("nothing", [None, "", "NaN", "nan", "NA", "None", " "])
def test_missing_titles_entities_and_categories_are_no_errors(tmp_path, nothing):
    row = GOOD | {"title": nothing, "brand": nothing, "low": nothing, "top": nothing, "split": nothing}
    (found,) = Feed(parquet(tmp_path / "feed.parquet", [row]), MAPPING)
    assert found == Product("good", (b"x",), "", (), {}, split_of("good"))


def test_numbers_with_nan_beside_them_are_ids_and_texts(tmp_path):
    table = pa.table(
        {
            "id": [1.0, 2.0, float("nan")],
            "images": [b"x"] * 3,
            "title": [float("nan"), 501.0, 2.5],
            "category": ["A"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "feed.parquet")
    feed = open_feed(tmp_path / "feed.parquet", on_error="skip")
    assert [(p.id, p.title) for p in feed] == [("1", ""), ("2", "501")]
    assert feed.summary.skipped == {"missing id": 1}


def test_an_id_counts_as_seen_only_when_its_row_was_good(tmp_path):
    rows = [GOOD | {"low": "B > C"}, GOOD, GOOD]
    feed = Feed(parquet(tmp_path / "feed.parquet", rows), MAPPING, on_error="skip")
    assert [p.id for p in feed] == ["good"]
    assert feed.summary.skipped == {"bad category": 1, "duplicate id": 1}


def test_cells_of_a_foreign_type_are_named(tmp_path):
    rows = [{"id": "1", "images": 3, "title": "", "category": ""}]
    with pytest.raises(FeedError, match=r"row 1: column 'images' holds int"):
        list(open_feed(parquet(tmp_path / "feed.parquet", rows)))
    rows = [{"id": "1", "images": [], "title": ["a"], "category": ""}]
    with pytest.raises(FeedError, match=r"row 1: column 'title' holds list"):
        list(open_feed(parquet(tmp_path / "feed2.parquet", rows)))


def test_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    broken = pa.array([b"1", b"\xff\xfe", b"3"], pa.binary()).view(pa.string())
    table = pa.table({"id": ["1", "2", "3"], "images": [b"x"] * 3, "title": broken, "category": ["A"] * 3})
    pq.write_table(table, tmp_path / "feed.parquet")
    feed = open_feed(tmp_path / "feed.parquet", on_error="skip")
    assert [p.id for p in feed] == ["1", "3"]
    assert feed.summary.skipped == {"not UTF-8": 1}


# Bad files


def test_files_that_are_no_feed_are_named(tmp_path):
    with pytest.raises(FeedError, match=r"absent\.parquet: no such file"):
        open_feed(tmp_path / "absent.parquet")
    (tmp_path / "feed.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(FeedError, match=r"feed\.parquet: not a readable Parquet file"):
        open_feed(tmp_path / "feed.parquet")
    (tmp_path / "feed.xlsx").write_bytes(b"")
    with pytest.raises(FeedError, match=r"feed\.xlsx.*\.parquet, \.csv.*not '\.xlsx'"):
        open_feed(tmp_path / "feed.xlsx")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_damaged_file_is_an_error_even_when_rows_are_skipped(tmp_path, on_error):
    path = tmp_path / "feed.parquet"
    write_feed(path, [product(i, images=(os.urandom(2000),)) for i in range(3000)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3_000] = bytes(3_000)
    for place in range(200, len(content) - 100_000, 9_000):
        content[place : place + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(FeedError, match=r"feed\.parquet"):
        list(open_feed(path, on_error=on_error))


# Images by path


@pytest.fixture
def folder(tmp_path):
    """A feed's folder with an image in it and one outside."""
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    inside = tmp_path / "feed"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "a.jpg").write_bytes(b"a")
    (inside / "images" / "b.jpg").write_bytes(b"b")
    (inside / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (inside / "good link.jpg").symlink_to(inside / "images" / "a.jpg")
    (inside / "up").symlink_to(tmp_path)
    (inside / "loop").symlink_to(inside / "loop")
    return inside


def images_of(folder, cell, **options):
    path = csv(folder / "feed.csv", f"id,images,title,category\n1,{cell},t,A\n")
    return next(iter(open_feed(path, **options))).images


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        ("images/a.jpg", (b"a",)),
        ("images/b.jpg|images/a.jpg", (b"b", b"a")),
        (" images/a.jpg | ", (b"a",)),
        ("images/../images/a.jpg", (b"a",)),
        ("good link.jpg", (b"a",)),
        ("", ()),
    ],
)
def test_image_paths_are_read_relative_to_the_feed(folder, cell, images, monkeypatch):
    monkeypatch.chdir("/")
    assert images_of(folder, cell) == images


@pytest.mark.parametrize("cell", ["../outside.jpg", "link.jpg", "up/outside.jpg", "/etc/hostname", "images/a.jpg|../x"])
def test_image_paths_out_of_the_feeds_folder_are_refused(folder, cell):
    with pytest.raises(FeedError, match=r"feed\.csv, row 1: image path .* leads out of the feed's folder"):
        images_of(folder, cell)


def test_a_feed_reached_through_a_link_finds_its_images(folder, tmp_path):
    csv(folder / "feed.csv", "id,images,title,category\n1,images/a.jpg,t,A\n")
    (tmp_path / "linked").symlink_to(folder)
    assert next(iter(open_feed(tmp_path / "linked" / "feed.csv"))).images == (b"a",)


@pytest.mark.parametrize("cell", ["images/c.jpg", "images", "loop", "a\0.jpg", "x" * 5000])
def test_image_paths_to_no_readable_file_are_refused(folder, cell):
    with pytest.raises(FeedError, match=r"row 1: (no )?image file"):
        images_of(folder, cell)


def test_image_files_above_the_limit_are_refused_unread(folder):
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(10**12)  # sparse: reading it would be noticed
    with pytest.raises(FeedError, match="has 1000000000000 bytes"):
        images_of(folder, "huge.jpg")


# CSV


def test_csv_with_byte_order_mark_quoted_lines_and_empty_cells(tmp_path):
    text = '\ufeffid,images,title,category,brand\r\n1,,"Two\r\nlines, ""quoted""",A > B,Acme\r\n\r\n2,,,,\r\n'
    feed = open_feed(csv(tmp_path / "feed.csv", text))
    assert list(feed) == [
        Product("1", (), 'Two\r\nlines, "quoted"', ("A", "B"), {"brand": "Acme"}, split_of("1")),
        Product("2", (), "", (), {}, split_of("2")),
    ]
    assert feed.summary.rows == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2,,t", "wrong number of fields"),
        ("2,,t,A,more", "wrong number of fields"),
        ('2,,"t"x,A', "bad CSV"),
        ("2,," + "t" * 5_000_000 + ",A", "bad CSV"),
        ("2,,\udcff,A", "not UTF-8"),
    ],
)
def test_bad_records_cost_their_row_alone(tmp_path, row, reason):
    path = tmp_path / "feed.csv"
    text = f"id,images,title,category\n1,,t,A\n{row}\n3,,t,A\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(FeedError, match=r"feed\.csv, row 2: .*line 3"):
        list(open_feed(path))
    feed = open_feed(path, on_error="skip")
    assert [p.id for p in feed] == ["1", "3"]
    assert feed.summary.skipped == {reason: 1}


def test_an_open_quote_at_the_end_is_a_bad_record(tmp_path):
    path = csv(tmp_path / "feed.csv", 'id,images,title,category\n1,,t,A\n2,,"t,A\n')
    feed = open_feed(path, on_error="skip")
    assert [p.id for p in feed] == ["1"]
    assert feed.summary.skipped == {"bad CSV": 1}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "no header"), ("id,id\n", "'id' twice"), ("id,title\n", "no column 'category'|no column 'images'")],
)
def test_bad_headers_are_refused(tmp_path, text, complaint):
    with pytest.raises(FeedError, match=rf"feed\.csv.*({complaint})"):
        open_feed(csv(tmp_path / "feed.csv", text))


# Memory

# VmHWM is the peak of the process itself; getrusage would count the process that it was forked from.
READ = """
import re, sys
from catalogue.feed import open_feed
rows = sum(1 for _ in open_feed(sys.argv[1]))
print(rows, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def peak_memory(path):
    output = subprocess.run([sys.executable, "-c", READ, path], cwd=ROOT, check=True, capture_output=True, text=True)
    rows, peak = output.stdout.split()
    return int(rows), int(peak)


def test_memory_does_not_grow_with_a_parquet_feed_even_in_one_row_group(tmp_path):
    peaks = {}
    for rows in (300, 1200):
        table = pa.table(
            {
                "id": [str(i) for i in range(rows)],
                "images": [[os.urandom(1000) * 100] for _ in range(rows)],
                "title": ["t"] * rows,
                "category": ["A"] * rows,
            }
        )
        # Pages are the least that can be read at once; their size is the writer's choice, not the row group's.
        options = {"compression": "none", "use_dictionary": False, "write_batch_size": 32}
        pq.write_table(table, tmp_path / "feed.parquet", row_group_size=rows, **options)
        read, peaks[rows] = peak_memory(tmp_path / "feed.parquet")
        assert read == rows
    assert (tmp_path / "feed.parquet").stat().st_size > 110e6
    assert peaks[1200] - peaks[300] < 45e6


def test_memory_does_not_grow_with_a_csv_feed(tmp_path):
    peaks = {}
    for rows in (50, 600):
        with open(tmp_path / "feed.csv", "w") as file:
            file.write("id,images,title,category\n")
            for i in range(rows):
                file.write(f"{i},,{'t' * 100_000},A\n")
        read, peaks[rows] = peak_memory(tmp_path / "feed.csv")
        assert read == rows
    assert peaks[600] - peaks[50] < 20e6
