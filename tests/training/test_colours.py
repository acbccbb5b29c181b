"""The colour matcher's batches, losses, metrics, recipe and bundle."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shelfwise
from catalogue.colour_groups import ColourGroup, ColourGroups
from catalogue.colour_labels import clean_labels
from catalogue.feed import open_feed, write_feed
from catalogue.label_noise import LabelNoise
from catalogue.product import Product
from catalogue.store import open_store
from models.tokenizer import character_tokenizer, encode, set_length
from training.bundle import BundleError
from training.categorize import CATEGORIZER
from training.colour_examples import ColourProducts, ProductMix, augment_photos, make_colour_examples, product_batch
from training.colour_metrics import DecodedAccuracy, colour_report
from training.colour_tasks import ColourEvaluator, matching_loss
from training.contrastive import contrastive_loss
from training.match_colours import COLOUR_MATCHER, sample_groups
from training.sampling import BatchRequest

GROUPS = [
    ColourGroup((5, 2), ("Red", "Blue", "Black"), ("Red", "Blue", "Black"), (2, 0)),
    ColourGroup((7, 9), ("Black", "White"), ("Black", "White"), (0, 1)),
]


def test_product_batch_packs_products_and_encodes_each_label_once() -> None:
    tokenizer = set_length(character_tokenizer(["red", "blue", "black", "white", "黑"]), 8)
    batch = product_batch(GROUPS, [("red", "blue", "黑色"), ("BLACK", "blue")], tokenizer, clean_labels)
    texts = ["red", "blue", "黑", "BLACK"]
    ids, mask = encode(tokenizer, texts)
    longest = mask.sum(1).max()
    assert longest < mask.shape[1]
    assert batch["input_ids"].tolist() == ids[:, :longest].tolist()
    assert batch["attention_mask"].tolist() == mask[:, :longest].tolist()
    assert batch["label_index"].tolist() == [0, 1, 2, 3, 1]
    assert batch["cu_images"].tolist() == [0, 2, 4]
    assert batch["cu_labels"].tolist() == [0, 3, 5]
    assert batch["cu_images"].dtype == torch.int32
    assert batch["photos"].tolist() == [5, 2, 7, 9]
    assert batch["answers"].tolist() == [2, 0, 0, 1]
    # Black is written 黑 in one product and BLACK in the other: both are right for a black photo; "blue" was written
    # for Blue in the first and for White in the second.
    assert batch["positives"].int().tolist() == [[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("label_share", [0.0, 0.5, 1.0])
def test_matching_loss_is_the_mean_of_each_photos_softmax_over_labels_and_of_its_labels_over_photos(
    label_share: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, generator=generator), torch.randn(2, 2, generator=generator)
    logits = torch.cat([first.flatten(), second.flatten()]).requires_grad_()
    lengths = torch.tensor([0, 2, 4]), torch.tensor([0, 3, 5])
    loss = matching_loss(logits, torch.tensor([2, 0, 0, 1]), *lengths, label_share)
    rows = [(first[0], 2), (first[1], 0), (second[0], 0), (second[1], 1)]
    columns = [
        (first[:, 2], 0),
        (first[:, 0], 1),
        (second[:, 0], 0),
        (second[:, 1], 1),
    ]  # nobody shows label 1 of first
    of_photos, of_labels = (
        -sum(math.log(float(scores.double().softmax(0)[answer])) for scores, answer in side) / 4
        for side in (rows, columns)
    )
    assert loss.item() == pytest.approx((1 - label_share) * of_photos + label_share * of_labels, rel=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_supervised_contrastive_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    positives = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)  # nothing shows text 2
    cosines = 10 * (images.double() @ texts.double().T)

    def side(scores: torch.Tensor, marks: torch.Tensor) -> float:
        losses = []
        for row, mark in zip(scores, marks, strict=True):
            if mark.any():
                losses.append(float(-(row - row.exp().sum().log())[mark].mean()))
        return sum(losses) / len(losses)

    expected = (side(cosines, positives) + side(cosines.T, positives.T)) / 2
    found = contrastive_loss(images, texts, torch.tensor(10.0), positives)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_report_counts_photos_and_whole_products() -> None:
    both = np.array([[0.6, 0.4, 0.0], [0.9, 0.1, 0.0]])  # arg-max gives label 0 twice
    sure = np.array([[0.1, 0.9]])
    report = colour_report([(both, np.array([1, 0])), (sure, np.array([1])), (sure, np.array([0]))])
    assert (report.products, report.images) == (3, 4)
    assert report.arg_max == DecodedAccuracy(2 / 4, 1 / 3)
    assert report.one_to_one == DecodedAccuracy(3 / 4, 2 / 3)
    assert report.flat()["one_to_one/products"] == report.one_to_one.products
    with pytest.raises(ValueError, match="no product"):
        colour_report([])


def test_a_batch_follows_from_its_request_alone(colour_feed: Path, tmp_path: Path) -> None:
    examples = make_colour_examples(open_store(open_feed(colour_feed), tmp_path, 64, 56))
    tokenizer = set_length(character_tokenizer(examples.colours()), 16)
    first, second = (ColourProducts(examples, tokenizer, LabelNoise(), clean_labels, ProductMix()) for _ in range(2))
    first[BatchRequest(np.arange(4), 1)]
    a, b = first[BatchRequest(np.arange(6), 7)], second[BatchRequest(np.arange(6), 7)]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(a["cu_images"]) == 7
    other = first[BatchRequest(np.arange(6), 8)]
    assert not torch.equal(a["photos"][:8], other["photos"][:8])
    train = set(examples.rows("train").tolist())
    drawn = {row for seed in range(20) for row in first[BatchRequest(np.arange(8), seed)]["photos"].tolist()}
    assert drawn <= train


def test_photos_that_cannot_be_decoded_are_left_out(colour_feed: Path, tmp_path: Path) -> None:
    products = list(open_feed(colour_feed))[:5]
    broken = Product("broken", (b"no image",), products[0].title, products[0].category, products[0].entities, "train")
    write_feed(tmp_path / "feed.parquet", [broken, *products])
    examples = make_colour_examples(
        open_store(open_feed(tmp_path / "feed.parquet", on_error="skip"), tmp_path / "store", 64, 56)
    )
    assert [variant is None for variant in examples.variants] == [True] + 5 * [False]
    assert 0 not in {row for split in ("train", "val", "test") for row in examples.rows(split)}


def test_augmented_photos_keep_their_colour() -> None:
    pixels = np.empty((40, 32, 24, 3), np.uint8)
    pixels[:] = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3))
    out = augment_photos(pixels, np.random.default_rng(1))
    assert np.abs(out[:, 8:-8, 8:-8].astype(int) - pixels[:, 8:-8, 8:-8]).max() <= 1


def test_a_short_training_learns_colours_and_looks_at_the_whole_product(colour_bundle: Path) -> None:
    metrics = COLOUR_MATCHER.load(colour_bundle).config.metrics
    real = metrics[metrics["served"]]["real"]
    assert real["one_to_one"]["images"] > 0.6  # chance is about 0.3
    assert {"joint", "frozen"} <= metrics.keys()
    assert {"real, written in chinese", "harder", "harder, more labels"} <= metrics["joint"].keys()


def test_bundle_answers_after_loading_as_its_figures_say(
    colour_bundle: Path, colour_feed: Path, tmp_path: Path
) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    assert bundle.config.system == "match-colours"
    tower = bundle.config.image_encoder
    examples = make_colour_examples(open_store(open_feed(colour_feed), tmp_path, tower.height, tower.width))
    groups = list(ColourGroups(examples.variants, "test").evaluation())
    report = ColourEvaluator(examples, groups, bundle.tokenizer).report(bundle.model)
    stored = bundle.config.metrics[bundle.config.metrics["served"]]["real"]
    assert report.one_to_one.images == pytest.approx(stored["one_to_one"]["images"])
    shown = [{examples.variants[row].group for row in group.photos} for group in groups]  # type: ignore[union-attr]
    samples = sample_groups(bundle.samples)
    assert len(samples) == len(shown)
    assert [len(sample) for sample in samples] == [len(group.photos) for group in groups]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda text: b"no tensors", "does not hold the model"),
        ("tokenizer.json", lambda text: b"{", "tokenizer.json"),
        ("config.json", lambda text: text.replace(b'"num_units": 3', b'"num_units": 2'), "does not hold the model"),
        ("config.json", lambda text: text.replace(b'"match-colours"', b'"categorize"'), "config.json"),
        ("samples.parquet", lambda text: b"nothing", "samples.parquet"),
    ],
)
def test_damaged_bundles_are_refused_by_the_files_name(
    colour_bundle: Path, tmp_path: Path, name: str, damage: object, message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(colour_bundle, folder)
    before = (folder / name).read_bytes()
    after = damage(before)  # type: ignore[operator]
    assert after != before
    (folder / name).write_bytes(after)
    with pytest.raises(BundleError, match=message):
        COLOUR_MATCHER.load(folder)


def test_a_bundle_of_another_system_is_refused(colour_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json"):
        CATEGORIZER.load(colour_bundle)


def test_a_feed_without_colours_is_refused_in_a_sentence(colour_feed: Path, tmp_path: Path) -> None:
    feed, settings = tmp_path / "feed.parquet", tmp_path / "settings.json"
    write_feed(feed, [replace(product, entities={}) for product in list(open_feed(colour_feed))[:3]])
    settings.write_text(json.dumps({"joint": {"epochs": 1}}))
    command = ["train", "match-colours", str(feed), "--run", str(tmp_path / "run"), "--settings", str(settings)]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 1
    assert "no product with both an image and a base_colour" in result.output
