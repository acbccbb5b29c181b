from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from catalogue.colour_groups import (
    HARDER_COLOURS,
    MAX_COLOURS,
    ColourGroup,
    ColourGroups,
    colour_products,
    colour_variant,
)
from catalogue.feed import open_feed
from catalogue.product import Product, split_of


def product(title: str, colour: str | None, number: int = 0) -> Product:
    entities = {} if colour is None else {"base_colour": colour}
    return Product(str(number), (b"photo",), title, ("Apparel", "Shirts"), entities, "train")


def in_split(split: str, colours: list[str]) -> list[Product]:
    """One design in some colours, whose group lies in `split`."""
    name = next(f"shirt {number}" for number in range(1000) if split_of(f"shirt {number}") == split)
    return [product(f"{colour} {name}", colour, number) for number, colour in enumerate(colours)]


def test_titles_that_differ_in_the_colour_word_are_one_group() -> None:
    variants = [
        colour_variant(product(f"Puma Men {colour.upper()}  Layered Tee", colour)) for colour in ("Navy Blue", "Red")
    ]
    assert variants[0] is not None
    assert {variant.group for variant in variants if variant} == {"puma men layered tee"}
    assert variants[0].split == split_of("puma men layered tee")


def test_a_colour_within_a_word_is_none() -> None:
    variant = colour_variant(product("Layered Tee", "Red"))
    assert variant is not None
    assert (variant.group, variant.named) == ("layered tee", False)


def test_chinese_titles_need_no_spaces_and_share_the_colours_name() -> None:
    variants = [colour_variant(product(f"浪行{label}毛衣", label)) for label in ("藏青色", "白色")]
    assert [(v.group, v.colour, v.label) for v in variants if v] == [
        ("浪行 毛衣", "Navy Blue", "藏青色"),
        ("浪行 毛衣", "White", "白色"),
    ]


def test_products_without_colour_or_image_are_none() -> None:
    assert colour_variant(product("Red Tee", None)) is None
    assert colour_variant(Product("1", (), "Red Tee", (), {"base_colour": "Red"}, "train")) is None


def test_groups_with_a_photo_that_cannot_be_read_are_left_out() -> None:
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "PNG")
    names = [f"shirt {number}" for number in range(1000) if split_of(f"shirt {number}") == "val"][:2]
    products = [product(f"{colour} {name}", colour) for name in names for colour in ("Red", "Blue")]
    whole = [replace(one, images=(photo.getvalue(),)) for one in products]
    assert len(colour_products(whole, "val")) == 2
    assert len(colour_products([*whole[:3], products[3]], "val")) == 1


def test_a_group_lies_in_one_split_whatever_the_feed_says() -> None:
    products = in_split("test", ["Red", "Blue", "Green"])  # the feed says "train"
    variants = [colour_variant(each) for each in products]
    assert len(ColourGroups(variants, "test")) == 1
    assert len(ColourGroups(variants, "train")) == 0
    assert not ColourGroups(variants, "train").has_harder


@pytest.mark.parametrize(
    "listings",
    [
        (("Black & Purple {}", "Black"), ("Black & Purple {}", "Purple")),
        (("{} Grey Trousers", "Grey"), ("{} Grey Trousers", "Charcoal")),
        (("{} Navy Tee", "Navy Blue"), ("{} Red Tee", "Red")),
        (("{} Olive Green Kurta", "Olive"), ("{} olive  green Kurta", "Green"), ("{} White Kurta", "White")),
        (("{}黑色白色毛衣", "黑色"), ("{}黑色白色毛衣", "白色")),
        (("{} Tee", "Red"), ("{} Blue Tee", "Blue")),
        (("Red Blue", "Red"), ("Red Blue", "Blue"), ("Green Blue", "Green")),
    ],
)
def test_a_design_lies_in_one_split_whichever_colour_it_is_labelled(listings: list[tuple[str, str]]) -> None:
    for number in range(60):
        names = [(title.format(f"Acme {number}"), label) for title, label in listings]
        assert len({variant.split for name in names if (variant := colour_variant(product(*name)))}) == 1, names


def check(group: ColourGroup, products: list[Product]) -> None:
    """Every photo shows the colour that its answer names, every colour at most once."""
    assert len(set(group.colours)) == len(group.colours)
    assert len(set(group.answers)) == len(group.answers) == len(group.photos)
    for photo, answer in zip(group.photos, group.answers, strict=True):
        assert products[photo].entities["base_colour"] == group.labels[answer]


def test_groups_pair_photos_with_their_colours() -> None:
    products = in_split("train", [f"Colour{number}" for number in range(20)])
    groups = ColourGroups([colour_variant(each) for each in products], "train")
    [real] = groups.evaluation()
    check(real, products)
    assert len(real.photos) == MAX_COLOURS
    assert [real] == list(groups.evaluation())
    sizes = set()
    for seed in range(100):
        group = groups.harder(random.Random(seed), distractors=3)
        check(group, products)
        assert len(group.colours) == len(group.photos) + 3
        sizes.add(len(group.photos))
    assert sizes == set(range(HARDER_COLOURS[0], HARDER_COLOURS[1] + 1))


def test_orders_of_photos_and_colours_do_not_give_the_answer_away() -> None:
    products = in_split("train", ["Red", "Blue", "Green", "Black", "White"])
    groups = ColourGroups([colour_variant(each) for each in products], "train")
    drawn = [groups.real_group(0, random.Random(seed)) for seed in range(500)]
    first = [group.answers[0] for group in drawn]
    assert all(60 < first.count(place) < 140 for place in range(5))
    first_colour = [group.colours[0] for group in drawn]
    assert all(60 < first_colour.count(each.entities["base_colour"]) < 140 for each in products)


def test_harder_needs_three_colours_in_a_category() -> None:
    groups = ColourGroups([colour_variant(each) for each in in_split("train", ["Red", "Blue"])], "train")
    with pytest.raises(ValueError, match="3 colours"):
        groups.harder(random.Random(0))


def test_finds_the_groups_of_the_real_feed(real_data: Path) -> None:
    variants = [colour_variant(each) for each in open_feed(real_data / "fashion-60x80.parquet", "fashion")]
    groups = {split: ColourGroups(variants, split) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert sum(map(len, groups.values())) > 4000
    assert 380 < len(groups["test"]) < 480


def test_no_title_of_the_real_feed_stands_in_two_splits(real_data: Path) -> None:
    splits: dict[str, set[str]] = {}
    for each in open_feed(real_data / "fashion-60x80.parquet", "fashion"):
        variant = colour_variant(each)
        if variant is not None and each.title:
            splits.setdefault(" ".join(each.title.lower().split()), set()).add(variant.split)
    assert len(splits) > 25_000
    assert [title for title, found in splits.items() if len(found) > 1] == []
