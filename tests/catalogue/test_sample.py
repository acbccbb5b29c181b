"""The generated catalogue: complete, deterministic, noisy in the ways it promises."""

import io
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogue.drawings import DRAWINGS
from catalogue.feed import open_feed
from catalogue.images import decode_image
from catalogue.pen import Pen, Style
from catalogue.product import split_of
from catalogue.sample import COLOURS, TAXONOMY, generate_sample, sample_products
from catalogue.taxonomy import Taxonomy


@pytest.fixture(scope="module")
def products():
    return list(sample_products(700))


def families(products):
    by_family = defaultdict(list)
    for product in products:
        by_family[product.id.split("-")[0]].append(product)
    return by_family


def test_the_same_seed_gives_the_same_feed_and_another_seed_another(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        summary = generate_sample(tmp_path / f"{name}.parquet", products=60, seed=seed)
        assert summary.products == 60
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    a, c = (list(open_feed(tmp_path / f"{name}.parquet")) for name in "ac")
    assert a == list(sample_products(60, seed=3))
    assert len({p.images for p in a} & {p.images for p in c} - {()}) == 0


def test_the_seed_alone_decides_in_any_process():
    code = "from catalogue.sample import *; import zlib; print(zlib.crc32(repr([*sample_products(30)]).encode()))"
    root = Path(__file__).parents[2]
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_a_longer_sample_begins_with_the_shorter_one():
    assert list(sample_products(80))[:60] == list(sample_products(60))


def test_every_category_is_there_in_three_levels(products):
    taxonomy = Taxonomy.from_products(products)
    assert len(taxonomy) >= 40
    assert {len(path) for path in taxonomy.paths} == {3}
    assert set(taxonomy.paths) == set(TAXONOMY)
    assert {p.category for p in sample_products(52)} == set(TAXONOMY)
    assert {path[2] for path in TAXONOMY} == set(DRAWINGS)


def test_colour_variants_differ_in_the_colour_alone(products):
    groups = [group for group in families(products).values() if len(group) > 1]
    assert len(groups) > 80
    for group in groups:
        words = [
            p.title.replace(p.entities["base_colour"], p.entities["base_colour"].replace(" ", "_")).split()
            for p in group
        ]
        differing = [place for place in zip(*words, strict=True) if len(set(place)) > 1]
        assert differing == [tuple(p.entities["base_colour"].replace(" ", "_") for p in group)]
        assert len({p.title for p in group}) == len(group)
        assert len({p.category for p in group}) == 1
        assert len({p.entities.get("brand") for p in group}) == 1


def test_a_family_lies_in_the_split_of_its_key(products):
    for key, group in families(products).items():
        assert {p.split for p in group} == {split_of(key)}


def test_the_noise_of_real_feeds_is_there(products):
    views = Counter(len(p.images) for p in products)
    assert set(views) == {0, 1, 2, 3}
    assert 0.002 < views[0] / len(products) < 0.03
    assert 0 < sum(not p.title for p in products) < 0.03 * len(products)
    assert all(p.title or p.images for p in products)
    no_brand = [p for p in products if "brand" in p.entities and p.entities["brand"].lower() not in p.title.lower()]
    assert 0.05 < len(no_brand) / len(products) < 0.4
    nouns = {path: [noun.lower() for noun in words] for path, words in TAXONOMY.items()}
    wordless = [p for p in products if not any(noun in p.title.lower() for noun in nouns[p.category])]
    assert 0.03 < len(wordless) / len(products) < 0.25


def test_entities_are_those_of_the_groups_and_now_and_then_absent(products):
    for group in ("brand", "season", "usage"):
        share = sum(group in p.entities for p in products) / len(products)
        assert 0.8 < share < 1
    assert {p.entities["base_colour"] for p in products} == set(COLOURS)
    assert all(p.entities["sub_category"] == p.category[1] for p in products)


def test_views_of_a_product_differ_and_are_jpeg(products):
    for product in products[:100]:
        assert len(set(product.images)) == len(product.images)
        for image in product.images:
            assert Image.open(io.BytesIO(image)).format == "JPEG"
            assert Image.open(io.BytesIO(image)).size == (96, 128)


def test_the_colour_can_be_seen(products):
    """The middle of most pictures is nearer to the product's own colour than to most others."""
    ranks = []
    for product in products:
        if product.category[2] in ("T-Shirts", "Trousers", "Cushions", "Wallets", "Sofas") and product.images:
            pixels = decode_image(product.images[0], 128, 96)[44:84, 33:63].reshape(-1, 3).astype(float)
            middle = np.median(pixels, axis=0)
            nearness = {name: np.linalg.norm(middle - colour) for name, colour in COLOURS.items()}
            ranks.append(sorted(nearness, key=nearness.__getitem__).index(product.entities["base_colour"]))
    assert len(ranks) > 20
    assert np.mean(np.array(ranks) < 5) > 0.7


def _picture(category, seed):
    canvas = Image.new("RGB", (96, 128), (255, 255, 255))
    DRAWINGS[category](Pen(canvas), Style((60, 110, 190), (230, 120, 40), "plain", random.Random(seed)))
    return np.asarray(canvas).astype(float)


def test_every_drawing_is_on_the_canvas_and_unlike_the_others():
    pictures = {category: _picture(category, 0) for category in DRAWINGS}
    for category, picture in pictures.items():
        covered = (picture < 250).any(axis=2)
        assert 0.02 < covered.mean() < 0.9, category
        edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
        assert edge.mean() < 0.05, category
    names = list(pictures)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(pictures[a] - pictures[b]).mean() > 2, (a, b)


def test_a_sample_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0"):
        generate_sample(tmp_path / "feed.parquet", products=0)
