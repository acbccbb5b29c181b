"""The recipe of the categorizer on feeds and label representations other than the usual ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import Product
from catalogue.store import open_store
from export.bundles import export_bundle
from export.categorize import real_inputs, whole_products
from models import efficientnet_lite
from models.category_head import NEVER, WAYS
from tests.conftest import train_and_save
from training.categorize import CATEGORIZER, CategorizeRecipe, CategorizeSettings, feature_codes
from training.feature_codes import codes_from_taxonomy
from training.recipe import held_out_samples
from training.settings import TrainConfig
from training.train import make_accelerator

PATHS = [("Apparel", "Shirts"), ("Apparel", "Trousers"), ("Footwear", "Boots"), ("Footwear", "Sandals")]


def small_settings(**changes: object) -> CategorizeSettings:
    """An epoch of each stage on small networks."""
    once = TrainConfig(epochs=1, batch_size=32)
    small = {"image_tower": "scratch", "image_height": 48, "image_width": 48, "embed_dim": 32, "vocab_size": 400}
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
    fitted = bundle.model.head.temperature != 1
    assert fitted.tolist() == [False, True, False], "what cannot be asked has nothing to fit"
    assert bundle.model.head.sure_from.tolist() == [NEVER] * 3, "so few products make no promise"
    report = export_bundle(run / "bundle", tmp_path / "repository")
    assert report.parity["category_head"][0].rows == len(bundle.samples)


def test_a_feed_without_titles_needs_fine_tuning_or_a_checkpoint(products: list[Product], tmp_path: Path) -> None:
    feed = tmp_path / "images.parquet"
    write_feed(feed, [replace(product, title="") for product in products])
    settings = small_settings().overridden({"epochs": 0})
    with pytest.raises(FeedError, match="no titles"):
        train_and_save(CategorizeRecipe, feed, settings, tmp_path / "run")


needs_imagenet = pytest.mark.skipif(
    efficientnet_lite.imagenet_weights() is None, reason="the package of ImageNet weights is not installed"
)


def recipe_of(feed: Path, settings: CategorizeSettings, folder: Path) -> CategorizeRecipe:
    return CategorizeRecipe(open_store(open_feed(feed), folder, *settings.image_size), settings, make_accelerator())


@needs_imagenet
def test_the_image_encoder_is_from_imagenet_and_goes_to_the_last_stage_as_it_is(
    sample_feed: Path, tmp_path: Path
) -> None:
    settings = CategorizeSettings()
    assert settings.image_size == (112, 84)
    recipe = recipe_of(sample_feed, settings, tmp_path)
    encoder = recipe.encoders.image_encoder
    pretrained = efficientnet_lite.imagenet_network()
    assert pretrained is not None
    torch.testing.assert_close(encoder.backbone.state_dict(), pretrained.state_dict())
    stages = list(recipe.stages())
    assert [(stage.task.name, stage.config) for stage in stages] == [("finetune", settings.imagenet)]
    assert settings.overridden({"epochs": 1}).last.epochs == 1
    assert not [note for note in recipe.notes if "installed" in note]
    frozen = recipe_of(sample_feed, settings.overridden({"epochs": 0, "image_height": 64}), tmp_path)
    assert frozen.store.size == (64, 84)
    assert next(frozen.stages()).task.name == "contrastive", "without fine-tuning, the published recipe"


def test_without_the_package_the_encoder_is_trained_from_scratch_and_a_note_says_so(
    sample_feed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-such-package-of-weights")
    settings = CategorizeSettings()
    assert settings.image_size == (80, 64)
    recipe = recipe_of(sample_feed, settings, tmp_path)
    assert recipe.encoders.image_encoder.config.backbone["model_type"] == "resnet"
    assert [note for note in recipe.notes if "is not installed: the image encoder is trained from scratch" in note]
    asked = recipe_of(sample_feed, settings.overridden({"image_tower": "scratch"}), tmp_path)
    assert not [note for note in asked.notes if "installed" in note], "who asks for it need not be told"


@pytest.mark.parametrize(("config", "sentence"), [('{"model_type": "bert"}', "is of kind 'bert'"), ("{", "is no JSON")])
def test_a_checkpoint_folder_of_another_kind_ends_the_command_with_a_sentence(
    config: str, sentence: str, sample_feed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    command = ["train", "categorize", str(sample_feed), "--run", str(tmp_path / "run"), "--image-height", "48"]
    result = CliRunner().invoke(shelfwise.app, [*command, "--image-width", "48", "--image-checkpoint", str(folder)])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert sentence in result.output
    assert str(folder) in result.output


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
    assert (loaded.model.head.temperature != 1).all(), "fitted for every way to ask"
    assert set(bundle.config.metrics["finetuned"]) == {*WAYS, *(f"{way}, unseen" for way in WAYS)}
    served = bundle.config.metrics[bundle.config.metrics["served"]]
    assert [served[way]["temperature"] for way in WAYS] == loaded.model.head.temperature.tolist()
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
