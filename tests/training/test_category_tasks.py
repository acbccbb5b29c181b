"""The categorizer's objective, its ways to ask and its figures, each against a reference written here."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.categorizer import Categorizer
from models.category_head import WAYS, CategoryHead, CategoryHeadConfig
from models.encoders import small_image_encoder, small_text_encoder
from training.category_tasks import (
    CategoryEvaluator,
    CategoryObjective,
    CategoryTask,
    FineTuneTask,
    HeadTask,
    recall_of_pairs,
)
from training.embeddings import Embeddings
from training.labels import LabelScheme, neighbours_of_similarities
from training.metrics import CategoryMetrics, taxonomy_table

CLASSES = 6
PATHS = [("A", name) for name in "abcdef"]


def table():
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.rand(CLASSES, 3, generator=generator), dim=1)
    similarities = vectors @ vectors.T
    similarities.fill_diagonal_(1.0)
    return neighbours_of_similarities(similarities, k=3)


def dense_objective(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, gamma: float, weight: float):
    """Focal loss and KL written out over dense float64 targets [C, C]."""
    log_q = logits.double().log_softmax(1)
    own = log_q.gather(1, labels[:, None])[:, 0]
    focal = -((1 - own.exp()) ** gamma) * own
    p = targets[labels]
    divergence = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - log_q), 0.0).sum(1)
    return float((focal + weight * divergence).mean())


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_the_objective_is_focal_loss_and_divergence_from_the_epochs_targets(epoch: int) -> None:
    neighbours, scheme = table(), LabelScheme("curriculum", remaining=0.5**4)
    objective = CategoryObjective(neighbours, scheme, gamma=2.0, kl_weight=1.5)
    objective.start_epoch(epoch / 4)
    soft = LabelScheme("neighbour_semantic").targets(neighbours)
    dense = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    dense.scatter_(1, soft.ids.long(), soft.weights.double())
    own = torch.eye(CLASSES, dtype=torch.float64)
    hardened = torch.where(own > 0, dense, dense * 0.5**epoch)  # off the class itself, a half is left every epoch
    hardened = hardened / hardened.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(32, CLASSES, generator=generator), torch.arange(32) % CLASSES
    found = float(objective(logits, labels))
    assert found == pytest.approx(dense_objective(logits, labels, hardened, 2.0, 1.5), rel=1e-4)


def test_recall_counts_pairs_among_the_nearest() -> None:
    angles = torch.tensor([0.0, 0.5, 1.0, 3.0])
    images = torch.stack([angles.cos(), angles.sin()], 1)
    moved = torch.tensor([-0.1, 0.95, 0.6, 3.0])  # the second and third texts have changed places
    texts = torch.stack([moved.cos(), moved.sin()], 1)
    assert recall_of_pairs(images, texts, at=(1, 2, 4)).tolist() == [0.5, 1.0, 1.0]
    assert recall_of_pairs(images, texts.roll(2, 0), at=(1,)).tolist() == [0.0]


def embeddings(rows: int) -> Embeddings:
    generator = torch.Generator().manual_seed(2)
    image, text = (F.normalize(torch.randn(rows, 8, generator=generator), dim=1) for _ in "it")
    present = torch.ones(rows, 1, dtype=torch.bool)
    without_image = present.clone()
    without_image[::4] = False
    return Embeddings(image, text, without_image, present, torch.arange(rows) % CLASSES)


def test_reports_ask_in_three_ways_of_the_rows_that_can_answer() -> None:
    torch.manual_seed(0)
    head = CategoryHead(CategoryHeadConfig(embed_dim=8, num_classes=CLASSES, hidden_dim=16)).eval()
    given = embeddings(40)
    neighbours = table()
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(neighbours.ids[:, 1:], taxonomy_table(PATHS)))
    reports = evaluator.reports(head, given)
    yes, no = torch.ones(40, 1, dtype=torch.bool), torch.zeros(40, 1, dtype=torch.bool)
    for asked, marks, rows in (
        ("image + title", (yes, yes), given.image_present[:, 0]),
        ("image", (yes, no), given.image_present[:, 0]),
        ("title", (no, yes), yes[:, 0]),
    ):
        with torch.no_grad():
            answers = head(given.image_embeds, given.text_embeds, *marks).argmax(1)
        assert reports[asked].top_1 == pytest.approx(float((answers == given.labels)[rows].float().mean()))
    few = torch.arange(40).numpy() < 10
    among = evaluator.reports(head, given, among=few)["title"]
    with torch.no_grad():
        answers = head(given.image_embeds, given.text_embeds, no, yes).argmax(1)
    assert among.top_1 == pytest.approx(float((answers == given.labels)[:10].float().mean()))


def ask(head: CategoryHead, given: Embeddings, way: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the rows that have what a way needs, asked about by hand."""
    image, title = given.image_present[:, 0], given.text_present[:, 0]
    rows, marks = {
        "image + title": (image & title, (True, True)),
        "image": (image, (True, False)),
        "title": (title, (False, True)),
    }[way]
    present = [torch.full((int(rows.sum()), 1), mark) for mark in marks]
    return head(given.image_embeds[rows], given.text_embeds[rows], *present), given.labels[rows]


@pytest.mark.parametrize("ways", [("image + title", "image", "title"), ("title",)])
def test_the_loss_is_the_mean_over_the_ways_of_the_objective_on_the_rows_that_have_them(ways: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    head = CategoryHead(CategoryHeadConfig(embed_dim=8, num_classes=CLASSES, hidden_dim=16)).eval()
    given, neighbours = embeddings(24), table()
    objective = CategoryObjective(neighbours, LabelScheme("one_hot"), gamma=0.0, kl_weight=0.0)
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(neighbours.ids[:, 1:], taxonomy_table(PATHS)))
    task = HeadTask(head, given, given, objective, evaluator, ways)
    batch = {name: getattr(given, name) for name in Embeddings.__dataclass_fields__}
    losses = task.losses(task.forward(head, batch), batch)
    expected = {way: F.cross_entropy(*ask(head, given, way)) for way in ways}
    torch.testing.assert_close(losses, expected)
    weights = task.combiner(losses)
    total = torch.stack([weights[way] * losses[way] for way in ways]).sum()
    torch.testing.assert_close(total, torch.stack([*expected.values()]).mean())
    assert math.isfinite(sum(task.evaluate().values()))


def test_the_whole_network_embeds_a_row_once_and_asks_about_it_in_three_ways() -> None:
    torch.manual_seed(0)
    encoders = small_image_encoder(48, 48, 8).eval(), small_text_encoder(20, 4, 8, hidden_size=16).eval()
    model = Categorizer(*encoders, CategoryHead(CategoryHeadConfig(embed_dim=8, num_classes=CLASSES)).eval())
    generator = torch.Generator().manual_seed(3)
    batch = {
        "pixel_values": torch.randint(0, 256, (6, 48, 48, 3), dtype=torch.uint8, generator=generator),
        "input_ids": torch.randint(1, 20, (6, 4), generator=generator),
        "attention_mask": torch.ones(6, 4, dtype=torch.int64),
        "image_present": torch.tensor([[True], [True], [False], [True], [True], [True]]),
        "text_present": torch.tensor([[True], [False], [True], [True], [True], [True]]),
        "labels": torch.arange(6) % CLASSES,
    }
    calls = []
    encoders[0].register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    objective = CategoryObjective(table(), LabelScheme("one_hot"), gamma=0.0, kl_weight=0.0)
    task = CategoryTask.__new__(FineTuneTask)  # its data set plays no part
    CategoryTask.__init__(task, objective, None, tuple(WAYS))
    losses = task.losses(task.forward(model, batch), batch)
    assert calls == [6]
    embedded = Embeddings(
        encoders[0](batch["pixel_values"]),
        encoders[1](batch["input_ids"], batch["attention_mask"]),
        batch["image_present"],
        batch["text_present"],
        batch["labels"],
    )
    for way in WAYS:
        torch.testing.assert_close(losses[way], F.cross_entropy(*ask(model.head, embedded, way)))
    assert len(ask(model.head, embedded, "image + title")[1]) == 4
