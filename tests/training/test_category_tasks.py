"""The categorizer's objective, its modalities and its figures, each against a reference written here."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.category_head import CategoryHead, CategoryHeadConfig
from training.category_tasks import CategoryEvaluator, CategoryObjective, HeadTask, ModalityDropout, recall_of_pairs
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


def test_dropout_takes_titles_and_images_at_their_rates_and_never_the_only_one() -> None:
    torch.manual_seed(0)
    both = torch.ones(20000, 1, dtype=torch.bool)
    image, title = ModalityDropout(title=0.35, image=0.15).apply(both, both)
    assert float((~title).float().mean()) == pytest.approx(0.35, abs=0.02)
    assert float((~image).float().mean()) == pytest.approx(0.15, abs=0.02)
    assert (image | title).all()
    nothing = torch.zeros_like(both)
    image, title = ModalityDropout().apply(both, nothing)
    assert image.all()
    assert not title.any()
    image, title = ModalityDropout().apply(nothing, both)
    assert title.all()


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
    neighbours, scheme = table(), LabelScheme("curriculum", epsilon=0.5)
    objective = CategoryObjective(neighbours, scheme, gamma=2.0, kl_weight=1.5)
    objective.start_epoch(epoch)
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


def test_the_heads_batch_loss_is_the_objective_on_its_logits() -> None:
    torch.manual_seed(0)
    head = CategoryHead(CategoryHeadConfig(embed_dim=8, num_classes=CLASSES, hidden_dim=16)).eval()
    given, neighbours = embeddings(24), table()
    objective = CategoryObjective(neighbours, LabelScheme("one_hot"), gamma=0.0, kl_weight=0.0)
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(neighbours.ids[:, 1:], taxonomy_table(PATHS)))
    task = HeadTask(head, given, given, objective, evaluator, ModalityDropout(title=0.0, image=0.0))
    batch = {name: getattr(given, name) for name in Embeddings.__dataclass_fields__}
    losses = task.losses(task.forward(head, batch), batch)
    logits = head(given.image_embeds, given.text_embeds, given.image_present, given.text_present)
    expected = F.cross_entropy(logits, given.labels)
    torch.testing.assert_close(torch.stack([*losses.values()]).sum(), expected)
    assert math.isfinite(sum(task.evaluate().values()))
