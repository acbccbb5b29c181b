from __future__ import annotations

from pathlib import Path

import numpy as np

from catalogue.colour_groups import ColourGroups, colour_variant
from catalogue.colour_sample import generate_colour_sample
from catalogue.colour_words import colour_name
from catalogue.feed import open_feed
from catalogue.images import decode_image


def test_every_design_is_one_group_in_one_language(tmp_path: Path) -> None:
    path = tmp_path / "colours.parquet"
    generate_colour_sample(path, products=40, seed=3)
    variants = [colour_variant(product) for product in open_feed(path)]
    groups = [group for split in ("train", "val", "test") for group in ColourGroups(variants, split).evaluation()]  # type: ignore[arg-type]
    assert len(groups) == 40
    assert sum(len(group.photos) for group in groups) == len(variants)
    chinese = [all(label != colour for label, colour in zip(g.labels, g.colours, strict=True)) for g in groups]
    english = [g.labels == g.colours for g in groups]
    assert all(a != b for a, b in zip(chinese, english, strict=True))
    assert 10 < sum(chinese) < 30


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_colour_sample(tmp_path / f"{name}.parquet", products=5, seed=1)
    assert list(open_feed(tmp_path / "a.parquet")) == list(open_feed(tmp_path / "b.parquet"))


def test_photos_show_the_colour_of_their_label(tmp_path: Path) -> None:
    path = tmp_path / "colours.parquet"
    generate_colour_sample(path, products=40, seed=3)
    red, green = [], []
    for product in open_feed(path):
        centre = decode_image(product.images[0], 64, 48)[24:40, 18:30].reshape(-1, 3).mean(0)
        {"Red": red, "Green": green}.get(colour_name(product.entities["base_colour"]), []).append(centre)
    assert np.mean(red, 0).argmax() == 0
    assert np.mean(green, 0).argmax() == 1
