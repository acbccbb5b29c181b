"""The recipe of text-image matching: stages, what starts from checkpoints, figures, and the audit."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import Product
from catalogue.store import Store, open_store
from tests.conftest import train_and_save
from tests.models.checkpoint_folders import network
from training.audit import Listing, audit, share_found, swap_titles
from training.match_metrics import area_under_curve, match_report
from training.match_tasks import MatchTask, entrance_loss, masked_patch_loss, masked_word_loss, match_probabilities
from training.match_text_image import MATCHER, MatchRecipe, MatchSettings, make_model
from training.recipe import run_stages
from training.sampling import BatchRequest
from training.sentence_encoder import packaged_sentence_encoder
from training.settings import TrainConfig
from training.train import make_accelerator


def small_settings(**changes: object) -> MatchSettings:
    once = TrainConfig(epochs=1, batch_size=32)
    small = {"image_height": 48, "image_width": 48, "hidden_size": 48, "layers": 1, "vocab_size": 400}
    small |= {"grid_rows": 4, "grid_columns": 4, "visual_words": 16, "pairs": once, "queries": once}
    return MatchSettings.model_validate(small | changes)


@pytest.fixture(scope="module")
def store(sample_feed: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(open_feed(sample_feed), tmp_path_factory.mktemp("store"), 64, 48)


def first_batch(settings: MatchSettings, store: Store) -> tuple[MatchTask, dict[str, torch.Tensor]]:
    recipe = MatchRecipe(store, settings, make_accelerator())
    task = next(iter(recipe.stages())).task
    assert isinstance(task, MatchTask)
    return task, task.dataset[BatchRequest(np.arange(24), 0)]


def test_two_stages_make_a_bundle_that_loads(match_bundle: Path) -> None:
    bundle = MATCHER.load(match_bundle)
    figures = bundle.config.metrics["queries"]
    assert bundle.config.metrics["served"] == "queries"
    assert {"title", "query"} <= set(figures)
    assert all(0 <= figures[asked]["auc"] <= 1 and figures[asked]["photos"] > 10 for asked in ("title", "query"))
    run = match_bundle.parent
    assert (run / "pairs.safetensors").is_file()
    assert (run / "queries.safetensors").is_file()
    assert (run / "tensorboard" / "pairs").is_dir()


@pytest.mark.parametrize("balance", ["equal", "losses", "gradients"])
def test_losses_fall_under_every_balance(balance: str, store: Store) -> None:
    torch.manual_seed(0)
    settings = small_settings(balance=balance, image_height=64)
    task, batch = first_batch(settings, store)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        losses = task.losses(task.forward(task.model, batch), batch)
        weights = task.combiner(losses)
        assert set(weights) == {"tia", "mlm", "mpm", "itc"}
        assert float(sum(weights.values())) == pytest.approx(1, abs=1e-5)
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        optimizer.step()
    # Alignment takes longer: `test_alignment_is_learned`.
    assert all(history[-1][name] < 0.9 * history[0][name] for name in ("mlm", "mpm", "itc")), history[-1]


def test_masked_patches_have_no_loss_where_they_are_not_modelled(store: Store) -> None:
    task, batch = first_batch(small_settings(patch_modelling=False, image_height=64), store)
    assert set(task.losses(task.forward(task.model, batch), batch)) == {"tia", "mlm", "itc"}


def test_losses_are_means_over_what_was_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator)
    tokens = torch.tensor([[4, -100, 1], [-100, -100, -100]])
    expected = -(torch.log_softmax(logits[0, 0], 0)[4] + torch.log_softmax(logits[0, 2], 0)[1]) / 2
    torch.testing.assert_close(masked_word_loss(logits, tokens), expected)
    true = torch.softmax(torch.randn(2, 3, 7, generator=generator), 2)
    asked = torch.tensor([[True, False, False], [False, True, False]])
    pairs = [(true[0, 0], logits[0, 0]), (true[1, 1], logits[1, 1])]
    divergence = sum((p * (p.log() - torch.log_softmax(q, 0))).sum() for p, q in pairs) / 2
    torch.testing.assert_close(masked_patch_loss(logits, true, asked), divergence)
    assert float(masked_patch_loss(true.log(), true, asked)) == pytest.approx(0, abs=1e-6)
    assert float(masked_word_loss(logits, torch.full((2, 3), -100))) == 0


def test_kin_are_not_to_be_told_apart() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    kin = torch.tensor([4, 7, 4, 9, 7])  # photos 0 and 2 are kin, text 4 is of photo 1's kin
    texts_seen = ([0, 1, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4])
    photos_seen = ([0, 1], [0, 1, 2], [1, 2])
    expected = sum(
        torch.logsumexp(logits[row, texts], 0) / 2 + torch.logsumexp(logits[photos, row], 0) / 2 - logits[row, row]
        for row, (texts, photos) in enumerate(zip(texts_seen, photos_seen, strict=True))
    )
    torch.testing.assert_close(entrance_loss(logits, kin), expected / 3)


COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200), "green": (20, 160, 20), "black": (10, 10, 10)}


def coloured_squares(path: Path, count: int) -> None:
    """A feed whose only clue is the colour: squares anywhere on white, named in the middle of the title."""
    generator = np.random.default_rng(0)
    products = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.full((24, 24, 3), 255, np.uint8)
        top, left = generator.integers(0, 12, 2)
        pixels[top : top + 12, left : left + 12] = COLOURS[colour]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        split = "val" if number < count // 5 else "train"
        title = f"{generator.choice(['soft', 'slim', 'city'])} {colour} shirt {number}"
        products.append(Product(str(number), (file.getvalue(),), title, ("Shirts",), {}, split))
    write_feed(path, products)


def test_alignment_is_learned(tmp_path: Path) -> None:
    """From scratch, within seconds: three of four colours differ, so that 0.875 is what can be known."""
    coloured_squares(tmp_path / "feed.parquet", 700)
    training = TrainConfig(epochs=9, batch_size=32, learning_rate=2e-3)
    settings = small_settings(
        image_height=24,
        image_width=24,
        grid_rows=2,
        grid_columns=2,
        hidden_size=96,
        patch_modelling=False,
        pairs=training,
        queries=TrainConfig(epochs=0, batch_size=32),
    )
    store = open_store(open_feed(tmp_path / "feed.parquet"), tmp_path / "store", 24, 24)
    recipe = MatchRecipe(store, settings, make_accelerator())
    (model,) = run_stages(recipe, tmp_path / "run").values()
    assert recipe.score(model) > 0.75


def test_parts_come_from_checkpoints(store: Store, tmp_path: Path) -> None:
    network("dinov2").save_pretrained(tmp_path)
    folder = packaged_sentence_encoder()
    settings = small_settings(image_checkpoint=tmp_path, language_model=folder, image_height=64)
    tokenizer, model = make_model(store, settings)
    assert (model.config.patches.rows, model.config.patches.columns) == (8, 6)
    backbone = network("dinov2").state_dict()
    torch.testing.assert_close(
        dict(model.patch_encoder.backbone.state_dict())["embeddings.cls_token"], backbone["embeddings.cls_token"]
    )
    if folder is not None:
        assert model.language_model.config.num_hidden_layers == 6
        assert tokenizer.token_to_id("[MASK]") is not None
    task, batch = first_batch(settings, store)
    assert all(torch.isfinite(loss) for loss in task.losses(task.forward(task.model, batch), batch).values())


def test_what_is_no_bert_is_refused(store: Store, tmp_path: Path) -> None:
    network("roberta").save_pretrained(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)):
        make_model(store, small_settings(language_model=tmp_path))


def test_feeds_without_pairs_are_refused(sample_feed: Path, tmp_path: Path) -> None:
    products = list(open_feed(sample_feed))[:60]
    write_feed(tmp_path / "feed.parquet", [replace(product, title="") for product in products])
    with pytest.raises(FeedError, match="no product with title and photo"):
        train_and_save(MatchRecipe, tmp_path / "feed.parquet", small_settings(), tmp_path / "run")
    write_feed(tmp_path / "feed.parquet", [replace(product, title="A thing") for product in products])
    with pytest.raises(FeedError, match="one title only"):
        train_and_save(MatchRecipe, tmp_path / "feed.parquet", small_settings(), tmp_path / "run2")


def test_area_and_accuracy_are_those_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    right, wrong = generator.integers(0, 9, 40) / 10 + 0.1, generator.integers(0, 9, 30) / 10
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert area_under_curve(right, wrong) == pytest.approx(np.mean(pairs))
    assert match_report(np.array([0.9, 0.4]), np.array([0.5, 0.1])).accuracy == 0.75


def test_pairs_are_scored_as_one_by_one(match_bundle: Path, store: Store) -> None:
    bundle = MATCHER.load(match_bundle)
    titles = store.titles[:6]
    from models.tokenizer import encode

    tokens = encode(bundle.tokenizer, titles)
    photo, title = np.array([3, 3, 0, 5]), np.array([0, 5, 5, 2])
    found = match_probabilities(bundle.model, store.photos, tokens, photo, title)
    with torch.no_grad():
        for row in range(4):
            pixels = torch.from_numpy(store.photos(photo[row : row + 1]))
            ids, mask = (torch.from_numpy(array[title[row]][None]) for array in tokens)
            alone = torch.sigmoid(bundle.model(pixels, ids, mask).match)
            assert float(alone) == pytest.approx(float(found[row]), abs=1e-5)


def test_swaps_are_exchanges_within_a_group() -> None:
    titles = [f"title {row % 37}" for row in range(400)]
    groups = [("a",) if row % 3 else ("b",) for row in range(400)]
    rows = np.arange(0, 400, 2)
    swapped, changed = swap_titles(titles, groups, rows, 0.1, np.random.default_rng(0))
    assert len(changed) == 20
    assert set(changed) <= set(rows)
    for row in range(400):
        assert (swapped[row] != titles[row]) == (row in changed)
    for group in set(groups):
        here = [row for row in range(400) if groups[row] == group]
        assert sorted(swapped[row] for row in here) == sorted(titles[row] for row in here)
    ids = {str(row) for row in changed[:10]}
    listings = [Listing(str(row), "", (), 0.0) for row in [*changed[:5], *range(1000, 1190), *changed[5:]]]
    assert share_found(listings, ids, 5 / len(listings)) == 0.5


def test_audit_lists_what_fits_least_first(match_bundle: Path, sample_feed: Path, tmp_path: Path) -> None:
    command = ["audit", str(sample_feed), "--bundle", str(match_bundle), "--store", str(tmp_path / "store"), "-n", "7"]
    files = ["--table", str(tmp_path / "audit.csv"), "--sheet", str(tmp_path / "audit.png")]
    result = CliRunner().invoke(shelfwise.app, [*command, *files, "--split", "test"])
    assert result.exit_code == 0, result.output
    table = list(csv.DictReader((tmp_path / "audit.csv").open()))
    probabilities = [float(row["probability"]) for row in table]
    assert probabilities == sorted(probabilities)
    held_out = {product.id for product in open_feed(sample_feed) if product.split == "test"}
    assert {row["id"] for row in table} <= held_out
    bundle = MATCHER.load(match_bundle)
    decoded = open_store(open_feed(sample_feed), tmp_path / "store", 64, 48)
    assert [listing.id for listing in audit(bundle, decoded, "test")] == [row["id"] for row in table]
    assert (tmp_path / "audit.png").stat().st_size > 1000
    refused = CliRunner().invoke(shelfwise.app, [*command, "--split", "all"])
    assert refused.exit_code == 1
    assert "--split is train, val or test" in refused.output


def test_listings_without_a_title_or_a_photo_are_left_out(
    match_bundle: Path, sample_feed: Path, tmp_path: Path
) -> None:
    products: list[Product] = [product for product in open_feed(sample_feed) if product.images and product.title][:5]
    products[0] = replace(products[0], title=" ")
    products[1] = replace(products[1], images=())
    write_feed(tmp_path / "feed.parquet", products)
    feed = open_feed(tmp_path / "feed.parquet")
    listings = audit(MATCHER.load(match_bundle), open_store(feed, tmp_path / "store", 64, 48))
    assert {listing.id for listing in listings} == {product.id for product in products[2:]}
