"""Products, their splits and the writing of category paths."""

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.product import Product, check_label, join_path, normal_label, parse_path, split_of


def _product(**changed):
    fields = {"id": "1", "images": (), "title": "", "category": (), "entities": {}, "split": "train"} | changed
    return Product(**fields)


def _usable(label):
    try:
        check_label(label)
    except ValueError:
        return False
    return True


LABEL_PARTS = st.sampled_from([" ", ">", "a", "B", "é", "\u2028", "\n", "-", "&", "靴"])


@given(st.lists(st.text(LABEL_PARTS, min_size=1, max_size=6).filter(_usable), max_size=5))
@settings(deadline=None)
def test_every_path_of_usable_labels_is_read_back_from_one_line(labels):
    line = join_path(tuple(labels))
    assert len(line.splitlines()) <= 1
    assert parse_path(line) == tuple(labels)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("A > B", "separator"),
        (">", "separator"),
        ("A >", "separator"),
        ("> B", "separator"),
        ("A\nB", "line break"),
        ("A\u2028B", "line break"),
        ("A\r", "white space"),
        (" A", "white space"),
        ("", "empty"),
        ("A>B", "separator"),
        ("A\u00a0B", "written 'A B'"),
        ("Cafe\u0301", "written"),
        ("A &amp; B", "written 'A & B'"),
    ],
)
def test_labels_that_a_line_cannot_hold_are_refused(label, complaint):
    with pytest.raises(ValueError, match=complaint):
        join_path(("Top", label))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("Cables > HDMI->DVI", ("Cables", "HDMI->DVI")),
        ("Home>Mugs", ("Home", "Mugs")),
        ("Home> Mugs >Red", ("Home", "Mugs", "Red")),
        ("Home >> Mugs", ("Home", "Mugs")),
        ("Laptops > >15 inch", ("Laptops", ">15 inch")),
        ("Pots > >= 5 l", ("Pots", ">= 5 l")),
        ("Maps > A=>B", ("Maps", "A=>B")),
        ("Home &gt; Kitchen &amp; Bath", ("Home", "Kitchen & Bath")),
    ],
)
def test_greater_than_separates_but_in_arrows_and_comparisons(text, path):
    assert parse_path(text) == path
    assert parse_path(join_path(path)) == path


@given(st.text(st.sampled_from(list("aé>&gt;#39 \u00a0\u0301\u200b\u200d\u00adक्ष\t\u3000\ufeff👩"))))
@settings(deadline=None)
def test_a_normal_label_stays_as_it_is(text):
    normal = normal_label(text)
    assert normal_label(normal) == normal
    assert not set(normal) & set("\u00a0\u200b\u00ad\u3000\ufeff\t")


@pytest.mark.parametrize("label", ["क्‍ष", "می‌خواهم", "👩‍🚀"])
def test_joiners_that_change_what_is_seen_are_kept(label):
    assert normal_label(label) == label


def test_white_space_around_labels_is_dropped_and_an_empty_text_is_no_path():
    assert parse_path("  Apparel  >  Topwear ") == ("Apparel", "Topwear")
    assert parse_path(" \t") == ()


def test_split_follows_the_documented_rule():
    for key in ("57990", "é", "a longer key"):
        u = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
        expected = "test" if u < 0.10 else "val" if u < 0.15 else "train"
        assert split_of(key) == expected


def test_split_of_known_ids_never_changes():
    assert [split_of(str(i)) for i in range(10)] == EXPECTED_SPLITS


EXPECTED_SPLITS = ["train", "train", "val", "train", "train", "train", "val", "train", "train", "train"]


def test_split_shares_are_ten_five_and_eighty_five_percent():
    counts = Counter(split_of(f"product {i}") for i in range(20_000))
    assert counts["test"] / 20_000 == pytest.approx(0.10, abs=0.01)
    assert counts["val"] / 20_000 == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"id": ""}, "id"),
        ({"category": ("A", "B > C")}, "separator"),
        ({"entities": {"maker": "Acme"}}, "maker"),
        ({"entities": {"brand": ""}}, "brand"),
        ({"split": "dev"}, "dev"),
    ],
)
def test_products_that_break_the_rules_are_refused(changed, complaint):
    with pytest.raises(ValueError, match=complaint):
        _product(**changed)
