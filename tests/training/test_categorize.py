"""The recipe of the categorizer on feeds and label representations other than the usual ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import Product
from catalogue.store import open_store
from export.bundles import export_bundle
from export.categorize import real_inputs, whole_products
from tests.conftest import train_and_save
from training.categorize import CATEGORIZER, CategorizeRecipe, CategorizeSettings, feature_codes
from training.feature_codes import codes_from_taxonomy
from training.recipe import held_out_samples
from training.settings import TrainConfig

PATHS = [("Apparel", "Shirts"), ("Apparel", "Trousers"), ("Footwear", "Boots"), ("Footwear", "Sandals")]


def small_settings(**changes: object) -> CategorizeSettings:
    """An epoch of each stage on small networks."""
    once = TrainConfig(epochs=1, batch_size=32)
    small = {"image_height": 48, "image_width": 48, "embed_dim": 32, "vocab_size": 400}
    return CategorizeSettings.model_validate(
        small | {"contrastive": once, "head": once, "finetune": once, "seed": 1} | changes
    )


@pytest.fixture(scope="module")
def products(sample_feed: Path) -> list[Product]:
    return list(open_feed(sample_feed))[:250]


def test_products_with_an_image_that_cannot_be_read_are_no_samples(products: list[Product], tmp_path: Path) -> None:
    spoilt = next(product for product in products if product.split == "val" and product.images and product.title)
    truncated = replace(spoilt, images=(spoilt.images[0][:-200],))
    write_feed(tmp_path / "feed.parquet", [truncated if product is spoilt else product for product in products])
    feed = open_feed(tmp_path / "feed.parquet", on_error="skip")
    store = open_store(feed, tmp_path / "store", 48, 48)
    held_out = held_out_samples(feed, store, lambda product: bool(product.images and product.title))
    for found in (held_out, whole_products(feed, "val")):
        assert found
        assert spoilt.id not in {product.id for product in found}


def test_a_feed_without_titles_trains_exports_and_answers(products: list[Product], tmp_path: Path) -> None:
    feed = tmp_path / "images.parquet"
    write_feed(feed, [replace(product, title="") for product in products])
    run = tmp_path / "run"
    bundle = train_and_save(CategorizeRecipe, feed, small_settings(), run)
    assert set(bundle.config.metrics) == {"served", "finetuned"}, "there are no pairs for the published recipe"
    assert set(bundle.config.metrics["finetuned"]) == {"image", "image, unseen"}
    report = export_bundle(run / "bundle", tmp_path / "repository")
    assert report.parity["category_head"][0].rows == len(bundle.samples)


def test_a_feed_without_titles_needs_fine_tuning_or_a_checkpoint(products: list[Product], tmp_path: Path) -> None:
    feed = tmp_path / "images.parquet"
    write_feed(feed, [replace(product, title="") for product in products])
    settings = small_settings().overridden({"epochs": 0})
    with pytest.raises(FeedError, match="no titles"):
        train_and_save(CategorizeRecipe, feed, settings, tmp_path / "run")


def test_binary_codes_are_trained_saved_and_served(products: list[Product], tmp_path: Path) -> None:
    feed = tmp_path / "feed.parquet"
    write_feed(feed, products)
    settings = small_settings(codes="taxonomy").overridden({"labels": "binary_codes"})
    bundle = train_and_save(CategorizeRecipe, feed, settings, tmp_path / "run")
    loaded = CATEGORIZER.load(tmp_path / "run" / "bundle")
    codes = codes_from_taxonomy(bundle.extras["labels.txt"].paths)
    torch.testing.assert_close(loaded.model.head.codes, codes.codes.float())

    inputs = real_inputs(loaded, loaded.samples)
    with torch.no_grad():
        features = loaded.model(*inputs.values())
    assert features.shape[1] == len(codes.features)
    expected = torch.softmax(codes.class_scores(features), dim=1)
    torch.testing.assert_close(torch.softmax(loaded.model.head.class_logits(features), dim=1), expected)
    assert export_bundle(tmp_path / "run" / "bundle", tmp_path / "repository").release == 1


def test_codes_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    codes_from_taxonomy(PATHS).save(tmp_path / "codes.safetensors")

    def unused(names: object) -> torch.Tensor:
        raise AssertionError("codes given by hand need no names")

    assert feature_codes(PATHS, unused, tmp_path / "codes.safetensors").classes == 4
    with pytest.raises(ValueError, match="codes of 4 classes, the feed 3"):
        feature_codes(PATHS[:3], unused, tmp_path / "codes.safetensors")


def test_hashed_names_have_room_for_similarity() -> None:
    embeddings = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert feature_codes(PATHS, lambda names: embeddings, "names").codes.shape == (4, 3)


def test_labels_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValidationError, match="nearest_ever"):
        CategorizeSettings().overridden({"labels": "nearest_ever"})
