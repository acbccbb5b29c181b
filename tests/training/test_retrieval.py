"""EI-CLIP's examples, losses and recipe: what is a positive, what a text view shows, from a feed to a bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F

from catalogue.feed import FeedError, open_feed, write_feed
from catalogue.product import Product
from catalogue.store import open_store
from models.entities import EntityConfig, EntityTower
from training.bundle import BundleError
from training.retrieval import RETRIEVER, RetrievalRecipe, RetrievalSettings
from training.retrieval_examples import RetrievalPairs, TextViews
from training.retrieval_task import EMBEDS, RetrievalTask, embed_rows, photo_features, retrieval_losses
from training.sampling import BatchRequest
from training.settings import TrainConfig
from training.train import Batch, fit, make_accelerator

PROJECT = Path(__file__).resolve().parents[2]


def pairs(seed: int, rows: int) -> tuple[Batch, Batch]:
    """Outputs and batch of rows whose texts repeat; the last has no description, the one before no entity."""
    generator = torch.Generator().manual_seed(seed)
    names = ("image_embeds", "text_embeds", "description_embeds", "entity_embeds")
    outputs = {name: F.normalize(torch.randn(rows, 8, generator=generator), dim=1) for name in names}
    descriptions = torch.randint(0, 3, (rows, 1), generator=generator)
    entities = torch.randint(1, 3, (rows, 2), generator=generator)
    entities[-2] = 0
    described = torch.ones(rows, 1, dtype=torch.bool)
    described[-1] = False
    keys = descriptions * 100 + entities[:, :1] * 10 + entities[:, 1:]
    batch = {"keys": keys, "description_keys": descriptions, "entity_ids": entities, "described": described}
    return outputs | {"scale": torch.tensor(7.0)}, batch


def written_out(images: Tensor, texts: Tensor, scale: float, said: list[Any]) -> float:
    """The loss in float64, row by row: equal texts share the target, None says nothing."""
    rows = [row for row, text in enumerate(said) if text is not None]
    cosines = scale * images.double().numpy() @ texts.double().numpy().T

    def one_way(scores: np.ndarray) -> float:
        total = 0.0
        for row in rows:
            log_sum = np.log(sum(np.exp(scores[row, other]) for other in rows))
            same = [other for other in rows if said[other] == said[row]]
            total -= sum(scores[row, other] - log_sum for other in same) / len(same)
        return total / len(rows)

    return (one_way(cosines) + one_way(cosines.T)) / 2


def test_losses_are_those_written_out_and_equal_texts_are_no_negatives() -> None:
    outputs, batch = pairs(0, 12)
    losses = retrieval_losses(outputs, batch)
    entities = [tuple(row) if any(row) else None for row in batch["entity_ids"].tolist()]
    descriptions = [
        key if there else None
        for [key], [there] in zip(batch["description_keys"].tolist(), batch["described"].tolist(), strict=True)
    ]
    texts = [tuple(key) for key in batch["keys"].tolist()]
    for name, said in {"text": texts, "description": descriptions, "entities": entities}.items():
        expected = written_out(outputs["image_embeds"], outputs[EMBEDS[name]], 7.0, said)
        assert float(losses[name]) == pytest.approx(expected, rel=1e-5), name


def test_without_entities_there_is_one_loss() -> None:
    outputs, batch = pairs(1, 8)
    del outputs["text_embeds"], outputs["entity_embeds"]
    assert list(retrieval_losses(outputs, batch)) == ["description"]


PROCESS = """
import sys
import torch
import torch.distributed as dist
from tests.training.test_retrieval import pairs
from training.retrieval_task import retrieval_losses

rank, file, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
outputs, batch = pairs(0, 12)
own = slice(6 * rank, 6 * rank + 6)
outputs = {name: tensor[own].clone().requires_grad_() if tensor.ndim else tensor for name, tensor in outputs.items()}
losses = retrieval_losses(outputs, {name: tensor[own] for name, tensor in batch.items()})
sum(losses.values()).backward()
# As DistributedDataParallel averages over the processes what each has summed.
torch.save([torch.stack(list(losses.values())), outputs["image_embeds"].grad / 2], f"{target}{rank}")
"""


def test_two_processes_compute_what_one_does_with_both_batches(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meet"), str(tmp_path / "rank")], cwd=PROJECT
        )
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in running] == [0, 0]
    outputs, batch = pairs(0, 12)
    outputs["image_embeds"].requires_grad_()
    losses = retrieval_losses(outputs, batch)
    torch.stack(list(losses.values())).sum().backward()
    found = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1)]
    for values, _ in found:
        torch.testing.assert_close(values, torch.stack(list(losses.values())))
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), outputs["image_embeds"].grad)


@pytest.fixture(scope="module")
def recipe(sample_feed: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalRecipe:
    store = open_store(open_feed(sample_feed), tmp_path_factory.mktemp("store"), 64, 48)
    settings = RetrievalSettings(
        image_height=64, image_width=48, embed_dim=32, vocab_size=1000, min_count=3, from_scratch=True
    )
    return RetrievalRecipe(store, settings, make_accelerator())


def test_a_text_is_seen_in_the_views_asked_for(recipe: RetrievalRecipe) -> None:
    examples = recipe.examples
    rows = examples.rows("train")[:64]
    request = BatchRequest(np.arange(64), seed=3)
    products = examples.examples.product[rows]

    def seen(views: TextViews) -> dict[str, Tensor]:
        return RetrievalPairs(examples, rows, views)[request]

    whole = seen(TextViews(title_entities=0, title=0, entity_dropout=0))
    assert (whole["entity_ids"].numpy() == examples.feed.entity_ids[products]).all()
    asked = seen(TextViews(title_entities=1, title=0, entity_dropout=0))
    named = examples.asked.entity_ids[products]
    assert (asked["entity_ids"].numpy()[named.any(1)] == named[named.any(1)]).all()
    assert (asked["input_ids"] == whole["input_ids"]).all()
    titles = seen(TextViews(title_entities=0, title=1, entity_dropout=0))
    given = examples.titles.described[products]  # without a title a product is seen as the feed has it
    assert not titles["entity_ids"].numpy()[given].any()
    assert (titles["input_ids"].numpy()[given] == examples.titles.input_ids[products][given]).all()
    dropped = seen(TextViews(title_entities=0, title=0, entity_dropout=0.5))["entity_ids"].numpy()
    kept = dropped[whole["entity_ids"].numpy() > 0] > 0
    assert 0.3 < kept.mean() < 0.7


def test_the_brand_is_an_entity_and_no_word_of_the_description(recipe: RetrievalRecipe) -> None:
    place = recipe.vocabulary.groups.index("brand")
    for product in recipe.store.rows("train")[:50]:
        brand = recipe.store.entities["brand"][product]
        if brand and recipe.store.titles[product].startswith(brand) and recipe.vocabulary.number("brand", brand):
            assert recipe.examples.asked.entity_ids[product, place] > 0
            assert brand not in recipe.vocabulary.parse(recipe.store.titles[product]).description


def test_gradient_caching_is_the_plain_large_batch(recipe: RetrievalRecipe, tmp_path: Path) -> None:
    examples, settings = recipe.examples, recipe.settings
    features = photo_features(recipe.model.image_encoder, examples)
    start = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trained = []
    for chunk in (None, 24):
        recipe.model.load_state_dict(start)
        task = RetrievalTask("caching", recipe.model, examples, settings.views, features)
        config = TrainConfig(
            epochs=1, batch_size=96, learning_rate=1e-3, chunk=chunk, rates={"image_encoder.backbone": 0.0}
        )
        for module in task.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        fit(task, config, tmp_path / str(chunk), accelerator)
        trained.append({name: tensor.clone() for name, tensor in recipe.model.state_dict().items()})
    recipe.model.load_state_dict(start)
    moved = [name for name, tensor in trained[0].items() if not torch.equal(tensor, start[name])]
    assert any(name.startswith("entities.gates") for name in moved)
    assert not any(name.startswith("image_encoder.backbone") for name in moved)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("pretrained", [False, True])
def test_norms_keep_the_statistics_of_a_pretrained_tower_alone(
    recipe: RetrievalRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool
) -> None:
    monkeypatch.setattr(recipe, "pretrained_image", pretrained)
    tower = recipe.model.image_encoder.backbone
    start = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    monkeypatch.setattr(recipe.settings, "frozen", TrainConfig(epochs=0))
    task = next(recipe.stages()).task
    fit(task, TrainConfig(epochs=1, batch_size=96, learning_rate=1e-3), tmp_path, make_accelerator())
    moved = {name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.endswith("running_mean") for name in moved) is not pretrained
    assert any(name.endswith("weight") for name in moved), "what is not a statistic is trained"
    recipe.model.load_state_dict(start)


def test_features_of_a_frozen_tower_are_what_it_would_compute(recipe: RetrievalRecipe) -> None:
    rows = recipe.examples.held_out("test")[:20]
    features = photo_features(recipe.model.image_encoder, recipe.examples)
    plain = embed_rows(recipe.model, recipe.examples, rows)
    cached = embed_rows(recipe.model, recipe.examples, rows, features=features)
    np.testing.assert_allclose(cached.image_embeds, plain.image_embeds, atol=1e-5)
    np.testing.assert_array_equal(plain.products, recipe.examples.examples.product[rows])


def test_an_uninformative_group_ends_with_the_smallest_gate() -> None:
    """Images are the sum of what brand and colour say; a third group is drawn at random."""
    generator = torch.Generator().manual_seed(0)
    count = 12
    brand, colour = (F.normalize(torch.randn(count + 1, 32, generator=generator), dim=1) for _ in range(2))
    torch.manual_seed(0)
    config = EntityConfig(groups=("brand", "colour", "noise"), sizes=(count,) * 3, embed_dim=32, entity_dim=16)
    tower = EntityTower(config)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(300):
        ids = torch.randint(1, count + 1, (64, 3), generator=generator)
        images = F.normalize(brand[ids[:, 0]] + 0.5 * colour[ids[:, 1]], dim=1)
        logits = 10 * images @ F.normalize(tower(ids).sum(), dim=1).T
        same = (ids[:, None, :2] == ids[:, :2]).all(2).float()
        loss = F.cross_entropy(logits, same / same.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gates = tower.mean_gates(torch.randint(1, count + 1, (500, 3), generator=generator))
    assert gates["noise"] < 0.5 * min(gates["brand"], gates["colour"])


def test_a_bundle_says_what_was_reached_and_is_the_same_after_saving(retrieve_bundle: Path) -> None:
    bundle = RETRIEVER.load(retrieve_bundle)
    metrics = bundle.config.metrics
    figures = metrics[metrics["served"]]
    assert set(figures["gates"]) == set(bundle.config.entities.groups)
    assert 0 < figures["text to image"]["recall_at_10"] <= 1
    assert 0 < figures["attributes"]["base_colour"]["precision_at_1"] <= 1
    assert bundle.config.training["entities"] == dict(
        zip(bundle.config.entities.groups, bundle.config.entities.sizes, strict=True)
    )


def test_a_vocabulary_that_does_not_fit_is_refused(retrieve_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(retrieve_bundle, folder)
    (folder / "entities.json").write_text('{"brand": ["Nike"]}')
    with pytest.raises(BundleError, match=r"entities\.json has \{'brand': 1\} values, the encoders"):
        RETRIEVER.load(folder)


def test_a_feed_without_entities_is_refused(tmp_path: Path, sample_feed: Path) -> None:
    plain = [Product(p.id, p.images, p.title, p.category, {}, p.split) for p in open_feed(sample_feed)][:60]
    write_feed(tmp_path / "plain.parquet", plain)
    store = open_store(open_feed(tmp_path / "plain.parquet"), tmp_path / "store", 64, 48)
    with pytest.raises(FeedError, match="there is no entity to learn"):
        RetrievalRecipe(store, RetrievalSettings(from_scratch=True), make_accelerator())
