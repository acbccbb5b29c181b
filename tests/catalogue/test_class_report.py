"""What a training is told of its classes and splits."""

from catalogue.class_report import ClassReport
from catalogue.feed import open_feed, write_feed
from catalogue.product import Product

A, B, C, D, MUGS, mugs = ("A",), ("B",), ("C",), ("Top", "D"), ("Home", "Mugs"), ("Home", "mugs")


def report(*counted):
    """Of (category, split, how many) …"""
    products = [(path, split) for path, split, count in counted for _ in range(count)]
    return ClassReport.of([path for path, _ in products], [split for _, split in products])


def test_a_well_filled_catalogue_gives_no_warning():
    well = report((A, "train", 5), (A, "val", 1), (B, "train", 5), (B, "test", 2), ((), "train", 1))
    assert well.warnings() == []
    assert well.products == {"train": 11, "val": 1, "test": 2}


def test_classes_without_a_training_product_or_with_one_are_named():
    said = report((A, "train", 5), (B, "train", 1), (C, "val", 3), (D, "test", 1), (B, "test", 9))
    assert (said.untrained, said.single) == ((C, D), (B,))
    assert said.warnings() == [
        "2 classes ('C', 'Top > D') without a training product cannot be learned",
        "1 class ('B') with a single training product",
    ]


def test_many_classes_are_counted_and_a_few_named():
    said = report(*((("A", str(i)), "train", 1) for i in range(12)), (A, "val", 1), (A, "test", 1), (A, "train", 2))
    assert said.warnings() == ["12 classes ('A > 0', 'A > 1', 'A > 10' and 9 more) with a single training product"]


def test_empty_splits_are_named():
    assert report((A, "train", 2), (A, "val", 1)).warnings() == ["no product is in the test split: nothing measured"]
    assert report((A, "test", 1)).empty_splits == ("train", "val")
    assert len(report().warnings()) == 3


def test_twins_count_products_of_all_splits():
    said = report((MUGS, "train", 2), (mugs, "train", 2), (mugs, "test", 1), (MUGS, "val", 5))
    assert said.twins == (((MUGS, 7), (mugs, 3)),)
    assert said.untrained == said.single == ()


def test_a_feed_reports_on_all_its_splits(tmp_path):
    splits = ("train", "train", "val")
    products = [Product(str(i), (b"x",), "", A, {}, split) for i, split in enumerate(splits)]
    write_feed(tmp_path / "feed.parquet", products)
    assert open_feed(tmp_path / "feed.parquet").class_report() == report((A, "train", 2), (A, "val", 1))
