"""The presets, on small feeds of the same form and on the real files where they are at hand."""

import os
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogue.feed import FeedError, detect_preset, open_feed
from catalogue.images import decode_image
from catalogue.product import Product, split_of
from catalogue.taxonomy import Taxonomy

DATA = Path(os.environ.get("SHELFWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real(name):
    path = DATA / name
    return pytest.param(path, id=name, marks=pytest.mark.skipif(not path.exists(), reason=f"{name} is not at hand"))


def fashion_row(i, master, sub, article, title="Acme Men Shirt"):
    return {
        "id": str(i),
        "image": b"jpeg",
        "title": title,
        "gender": "Men",
        "master_category": master,
        "sub_category": sub,
        "article_type": article,
        "base_colour": "Blue",
        "season": "",
        "year": "2012",
        "usage": "NA",
    }


def test_fashion_files_an_article_type_under_its_most_frequent_path(tmp_path):
    rows = [
        fashion_row(0, "Free Items", "Free Gifts", "Ties"),
        fashion_row(1, "Accessories", "Ties", "Ties"),
        fashion_row(2, "Accessories", "Ties", "Ties"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "feed.parquet")
    found = list(open_feed(tmp_path / "feed.parquet", "fashion"))
    assert {p.category for p in found} == {("Accessories", "Ties", "Ties")}
    assert found[0] == Product(
        "0",
        (b"jpeg",),
        "Acme Men Shirt",
        ("Accessories", "Ties", "Ties"),
        {"brand": "Acme", "base_colour": "Blue", "sub_category": "Free Gifts"},
        split_of("0"),
    )


def test_fashion_files_alike_whichever_splits_are_given_out(tmp_path):
    rows = [fashion_row(i, *(("A", "B") if split_of(str(i)) == "test" else ("C", "D")), "Ties") for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "feed.parquet")
    assert {p.category for p in open_feed(tmp_path / "feed.parquet", "fashion", splits=["test"])} == {
        ("C", "D", "Ties")
    }


def grocery(folder, fine):
    rows = [{"split": "val", "path": "val/a.jpg", "image": b"jpeg", "fine": fine, "coarse": 0}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "grocery.parquet")
    return folder / "grocery.parquet"


def test_grocery_joins_the_names_of_its_classes(tmp_path):
    path = grocery(tmp_path, 4)
    classes = [{"fine": 4, "name": "Royal Gala", "coarse": 0, "coarse_name": "Apple"}]
    pq.write_table(pa.Table.from_pylist(classes), tmp_path / "grocery-classes.parquet")
    assert list(open_feed(path, "grocery")) == [
        Product("val/a.jpg", (b"jpeg",), "", ("Apple", "Royal Gala"), {}, "val")
    ]
    with pytest.raises(
        FeedError, match=r"grocery\.parquet, row 1: column 'fine': 5 is not in grocery-classes\.parquet"
    ):
        list(open_feed(grocery(tmp_path, 5), "grocery"))


def test_grocery_without_its_classes_names_the_missing_file(tmp_path):
    with pytest.raises(FeedError, match=r"grocery-classes\.parquet: no such file"):
        open_feed(grocery(tmp_path, 4), "grocery")


@pytest.mark.parametrize("path", [real("fashion-60x80.parquet")])
def test_real_fashion_feed(path):
    truth = {
        row["id"]: row for row in pq.read_table(path, columns=["id", "title", "article_type", "season"]).to_pylist()
    }
    feed = open_feed(path, "fashion")
    paths_of_type = defaultdict(set)
    splits: Counter[str] = Counter()
    brands: Counter[str] = Counter()
    for product in feed:
        row = truth[product.id]
        assert product.category[-1] == row["article_type"]
        assert product.title == row["title"]
        assert product.entities.get("season", "") == row["season"]
        assert product.split == split_of(product.id)
        assert len(product.images) == 1
        paths_of_type[row["article_type"]].add(product.category)
        splits[product.split] += 1
        brand = product.entities.get("brand")
        if brand:
            brands[brand] += 1
            assert " ".join(product.title.split()).casefold().startswith(brand.casefold())
    assert feed.summary.products == len(truth)
    assert len(paths_of_type) == 142
    assert all(len(paths) == 1 for paths in paths_of_type.values())
    assert splits["test"] / len(truth) == pytest.approx(0.10, abs=0.01)
    assert brands.total() / len(truth) > 0.95
    assert {"Nike", "United Colors of Benetton", "Lino Perros", "Fila"} <= set(brands)


@pytest.mark.parametrize("path", [real("grocery.parquet")])
def test_real_grocery_feed(path):
    feed = open_feed(path, "grocery")
    splits = Counter(product.split for product in feed)
    assert splits == {"train": 2640, "val": 296, "test": 2485}
    taxonomy = Taxonomy.from_products(feed)
    assert len(taxonomy) == 81
    assert ("Apple", "Royal Gala") in taxonomy


@pytest.mark.parametrize(
    ("path", "preset"),
    [(*real("fashion-224x224.parquet").values, "fashion"), (*real("grocery.parquet").values, "grocery")],
)
def test_real_photos_decode(path, preset):
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    for i, product in enumerate(open_feed(path, preset)):
        if i % 40 == 0:
            assert decode_image(product.images[0], 96, 96).shape == (96, 96, 3)


@pytest.mark.parametrize("path", [real("google-taxonomy.txt")])
def test_real_google_taxonomy(path):
    taxonomy = Taxonomy.read_google(path)
    assert len(taxonomy) == 5595
    assert ("Animals & Pet Supplies", "Pet Supplies", "Bird Supplies", "Bird Cages & Stands") in taxonomy
    lines = [line for line in path.read_text().splitlines() if "|" in line]
    leaves = [
        line for line in lines if (n := line.split("[")[1].split("]")[0].split("-")) and int(n[1]) - int(n[0]) == 1
    ]
    assert len(taxonomy.leaves()) == len(leaves)


MERCHANT = """\
id\ttitle\tdescription\tlink\timage_link\tadditional_image_link\tadditional_image_link\tprice\tbrand\tgtin\
\tgoogle_product_category\tproduct_type\tcolor\tshipping
A1\tRed mug\tOf clay\thttps://shop.example/a1\timg/a.jpg\tx\ty\t9.99 EUR\tAcme\t012\
\tHome &amp; Garden > Kitchen > Mugs\tCups\tRed\tDE:::4.99 EUR
A2\tCap\t\thttps://shop.example/a2\timg/a.jpg\t\t\t9.99 EUR\t\t\t\tHats > Caps\t\t
"""


@pytest.mark.parametrize(("ending", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_google_merchant_feeds_are_recognised_and_read(tmp_path, ending, separator):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(b"x")
    path = tmp_path / f"feed.{ending}"
    path.write_text(MERCHANT.replace("\t", separator))
    assert detect_preset(path) == "google-merchant"
    assert list(open_feed(path, detect_preset(path))) == [
        Product(
            "A1",
            (b"x",),
            "Red mug",
            ("Home & Garden", "Kitchen", "Mugs"),
            {"brand": "Acme", "base_colour": "Red"},
            split_of("A1"),
        ),
        Product("A2", (b"x",), "Cap", ("Hats", "Caps"), {}, split_of("A2")),
    ]


@pytest.mark.parametrize(
    "spelled", [str.upper, lambda name: name.replace("_", " "), lambda name: f"g:{name}", lambda name: name.title()]
)
def test_columns_are_found_in_every_spelling(tmp_path, spelled):
    header = "\t".join(map(spelled, ("id", "title", "image_link", "product_type", "color")))
    path = tmp_path / "feed.tsv"
    path.write_text(f"{header}\n1\tMug\t\tHome > Mugs\tRed\n")
    assert detect_preset(path) == "google-merchant"
    (found,) = open_feed(path, "google-merchant")
    assert found == Product("1", (), "Mug", ("Home", "Mugs"), {"base_colour": "Red"}, split_of("1"))


def test_of_several_spellings_the_one_to_the_letter_counts_or_none(tmp_path):
    path = tmp_path / "feed.csv"
    path.write_text("ID,images,title,Title,category\n1,,a,b,A\n")
    assert [(p.id, p.title) for p in open_feed(path)] == [("1", "a")]
    path.write_text("id,images,TITLE,Title,category\n1,,a,b,A\n")
    with pytest.raises(FeedError, match="no column 'title'"):
        open_feed(path)


SHOPIFY = """\
Handle,Title,Body (HTML),Vendor,Product Category,Type,Published,Option1 Name,Option1 Value,Variant SKU,\
Image Src,Image Position
red-mug,Red mug,"<p>Of clay,
and ""red""</p>",Acme,Home & Garden > Kitchen > Mugs,Cups,true,Size,S,1,a.jpg,1
red-mug,,,,,,,,M,2,b.jpg,2
red-mug,,,,,,,,L,3,,
cap,Cap,,,,Hats > Caps,true,Title,Default Title,4,,
"""


def test_shopify_exports_have_several_rows_a_product(tmp_path):
    path = tmp_path / "products_export.csv"
    path.write_text(SHOPIFY)
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    assert detect_preset(path) == "shopify"
    feed = open_feed(path, "shopify")
    assert list(feed) == [
        Product(
            "red-mug",
            (b"a", b"b"),
            "Red mug",
            ("Home & Garden", "Kitchen", "Mugs"),
            {"brand": "Acme"},
            split_of("red-mug"),
        ),
        Product("cap", (), "Cap", ("Hats", "Caps"), {}, split_of("cap")),
    ]
    assert (feed.summary.rows, feed.summary.products) == (4, 2)


def test_a_bad_photo_of_a_shopify_product_costs_all_its_rows(tmp_path):
    path = tmp_path / "products_export.csv"
    path.write_text(SHOPIFY)
    feed = open_feed(path, "shopify", on_error="skip")
    assert [p.id for p in feed] == ["cap"]
    assert feed.summary.skipped == {"missing image file": 3}
