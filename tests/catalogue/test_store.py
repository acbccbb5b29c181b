"""A feed decoded once: what is in the store, when it is made anew, and what is new among held-out products."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogue.feed import Feed, FeedError, open_feed, write_feed
from catalogue.images import decode_image
from catalogue.product import Product, Split
from catalogue.store import open_store, unseen_products


def jpeg(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE = jpeg((250, 0, 0)), jpeg((0, 250, 0)), jpeg((0, 0, 250))


def product(name: str, split: Split, *images: bytes, title: str = "") -> Product:
    return Product(name, images, title, ("Home", "Mugs"), {"brand": "Acme"}, split)


PRODUCTS = [
    product("a", "train", RED, GREEN, title="Big Mug"),
    product("b", "test", RED, title="Another mug"),
    product("c", "test", BLUE, title="big  mug"),
    product("d", "val", BLUE, title="Plate"),
    product("e", "val"),
]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    write_feed(tmp_path / "feed.parquet", PRODUCTS)
    return tmp_path / "feed.parquet"


class Once(Feed):
    """A feed that may be read so many times."""

    passes = 2

    def __iter__(self) -> Iterator[Product]:
        assert self.passes, "read once for the products and once for the size"
        self.passes -= 1
        return super().__iter__()


def test_rows_are_the_feeds_products_and_their_photos(feed: Path, tmp_path: Path) -> None:
    store = open_store(open_feed(feed), tmp_path / "store", 24, 16)
    assert store.ids == ["a", "b", "c", "d", "e"]
    assert store.titles[0] == "Big Mug"
    assert store.categories[0] == ("Home", "Mugs")
    assert store.entities["brand"] == ["Acme"] * 5
    assert store.entities["season"] == [""] * 5
    assert store.photo_product.tolist() == [0, 0, 1, 2, 3]
    images = [image for row in PRODUCTS for image in row.images]
    for found, image in zip(store.pixel_values, images, strict=True):
        np.testing.assert_array_equal(found, decode_image(image, 24, 16))
    assert (store.photos(np.array([-1, 0]))[0] == 255).all()


def test_a_second_run_and_a_second_system_decode_nothing(feed: Path, tmp_path: Path) -> None:
    first = open_store(Once(feed), tmp_path / "store", 24, 16)
    again = Once(feed)
    again.passes = 0
    second = open_store(again, tmp_path / "store", 24, 16)
    np.testing.assert_array_equal(first.pixel_values, second.pixel_values)
    assert first.digest == second.digest
    again.passes = 1  # another size: the photos alone
    assert open_store(again, tmp_path / "store", 12, 12).pixel_values.shape == (5, 12, 12, 3)


def test_a_feed_edited_at_equal_length_is_another_feed(feed: Path, tmp_path: Path) -> None:
    before = open_store(open_feed(feed), tmp_path / "store", 24, 16)
    write_feed(feed, [replace(row, title=row.title.replace("Plate", "Bowls")[:5]) for row in PRODUCTS])
    after = open_store(open_feed(feed), tmp_path / "store", 24, 16)
    assert after.digest != before.digest
    assert after.titles[3] == "Bowls"


def test_held_out_products_are_unseen_when_title_and_photo_are_new(feed: Path, tmp_path: Path) -> None:
    store = open_store(open_feed(feed), tmp_path / "store", 24, 16)
    # b has a training photo, c a training title in other spelling; d and e have neither.
    assert [name for name, new in zip(store.ids, store.unseen, strict=True) if new] == ["d", "e"]
    assert unseen_products(open_feed(feed)) == {"d", "e"}


def test_a_feed_without_validation_products_keeps_some_aside(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.parquet", [product(f"p{n}", "test" if n % 9 == 0 else "train") for n in range(400)])
    store = open_store(open_feed(tmp_path / "feed.parquet"), tmp_path / "store", 24, 16)
    tested, trained = store.rows("test").tolist(), len(store.rows("train"))
    store.keep_validation()
    kept = len(store.rows("val"))
    assert 0.02 < kept / trained < 0.09
    assert store.rows("test").tolist() == tested
    assert f"{kept} of the {trained} training products" in store.notes[-1]
    store.keep_validation()
    assert len(store.rows("val")) == kept, "once is enough"


def test_images_that_cannot_be_read_stop_or_are_counted(tmp_path: Path) -> None:
    broken = product("broken", "train", RED[:-30], title="x")
    write_feed(tmp_path / "feed.parquet", [*PRODUCTS, broken])
    with pytest.raises(FeedError, match="product 'broken'"):
        open_store(open_feed(tmp_path / "feed.parquet"), tmp_path / "store", 24, 16)
    store = open_store(open_feed(tmp_path / "feed.parquet", on_error="skip"), tmp_path / "store", 24, 16)
    assert store.readable.tolist() == [True] * 5 + [False]
    assert store.notes[0].startswith("1 of 6 images could not be read")


def test_rows_left_out_are_told_to_every_run(feed: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.csv"
    twice.write_text("id,images,title,category\na,,Mug,\na,,Mug,\n,,Mug,\nb,,Cup,\n")
    for _ in range(2):
        store = open_store(open_feed(twice, on_error="skip"), tmp_path / "store", 24, 16)
        assert store.ids == ["a", "b"]
        assert sorted(store.notes) == ["1 rows left out: duplicate id", "1 rows left out: missing id"]


def test_a_feed_none_of_whose_training_images_can_be_read_is_refused(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.parquet", [product("a", "train", b"no image"), product("b", "test", RED)])
    with pytest.raises(FeedError, match="none of its 1 training images can be read"):
        open_store(open_feed(tmp_path / "feed.parquet", on_error="skip"), tmp_path / "store", 24, 16)
