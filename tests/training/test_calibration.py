"""Temperatures, thresholds and what is filed without a person, each against a reference written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from torch.nn import functional as F

from models.category_head import NEVER, WAYS, CategoryHead, CategoryHeadConfig, way_asked, way_number
from training.calibration import (
    answer_reports,
    calibrate_head,
    filing,
    fit_temperature,
    mistakes_found,
    share_at,
    threshold,
)
from training.category_tasks import CategoryEvaluator, logits_by_way
from training.embeddings import Embeddings
from training.labels import NeighbourDivergence, neighbours_of_similarities
from training.metrics import CategoryMetrics

CLASSES, WIDTH = 5, 16


def drawn_answers(temperature: float, rows: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature): what a fit has to find again."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (rows, CLASSES))
    honest = softmax(logits / temperature, axis=1)
    labels = np.array([generator.choice(CLASSES, p=row) for row in honest])
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_where_the_likelihood_has_no_slope(temperature: float) -> None:
    logits, labels = drawn_answers(temperature)

    def slope(inverse: float) -> float:
        """d/dβ of the mean log-likelihood at softmax(β·logits): the label's logit less the expected one."""
        expected = (softmax(inverse * logits.numpy(), axis=1) * logits.numpy()).sum(1)
        return float((logits.numpy()[np.arange(len(labels)), labels] - expected).mean())

    found = fit_temperature(logits, labels)
    assert found == pytest.approx(1 / brentq(slope, 0.05, 20), rel=1e-4)
    assert found == pytest.approx(temperature, rel=0.1)


def embeddings(rows: int, seed: int) -> Embeddings:
    """Noisy pictures and titles of five classes; every fourth row has no picture."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(rows) % CLASSES
    image, text = (
        F.normalize(centres[labels] + noise * torch.randn(rows, WIDTH, generator=generator), dim=1)
        for noise in (2.0, 0.8)
    )
    present = torch.ones(rows, 1, dtype=torch.bool)
    image_present = present.clone()
    image_present[::4] = False
    return Embeddings(image, text, image_present, present, labels)


@pytest.fixture(scope="module")
def timid_head() -> CategoryHead:
    """A head that was trained well and then made timid: its logits are a quarter of what they should be."""
    torch.manual_seed(0)
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=CLASSES, hidden_dim=32, dropout=0.0))
    given = embeddings(2000, seed=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.tensor(0.0)
        for use_image, use_title in WAYS.values():
            present = [torch.full((2000, 1), mark) for mark in (use_image, use_title)]
            loss = loss + F.cross_entropy(head(given.image_embeds, given.text_embeds, *present), given.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        head.mlp[-1].weight *= 0.25
        head.mlp[-1].bias *= 0.25
    return head.eval()


@pytest.fixture(scope="module")
def calibrated_head(timid_head: CategoryHead) -> CategoryHead:
    head = CategoryHead(timid_head.config)
    head.load_state_dict(timid_head.state_dict())
    with torch.no_grad():
        calibrate_head(head.eval(), embeddings(2000, seed=2), precision=0.9)
    return head


def test_calibration_makes_probabilities_honest_in_every_way_and_changes_no_answer(
    timid_head: CategoryHead, calibrated_head: CategoryHead
) -> None:
    neighbours = torch.tensor([[(c + 1) % CLASSES] for c in range(CLASSES)])
    evaluator = CategoryEvaluator(lambda: CategoryMetrics(neighbours))
    test = embeddings(3000, seed=3)
    before, after = evaluator.reports(timid_head, test), evaluator.reports(calibrated_head, test)
    assert set(before) == set(after) == set(WAYS)
    for way in WAYS:
        assert before[way].calibration_error > 0.15
        assert after[way].calibration_error < 0.04
        assert after[way].top_1 == before[way].top_1
    assert len({float(temperature) for temperature in calibrated_head.temperature}) == 3, "one for each way"


def test_answers_from_the_threshold_on_are_right_as_often_as_was_asked(calibrated_head: CategoryHead) -> None:
    validation = embeddings(2000, seed=2)
    for way, logits, labels in logits_by_way(calibrated_head, validation):
        number = way_number(way)
        probability, classes = calibrated_head.log_probability(logits, number).exp().max(1)
        lowest = float(calibrated_head.sure_from[number])
        sure = probability >= lowest
        assert float((classes == labels)[sure].float().mean()) >= 0.9
        more = probability >= float(probability[probability < lowest].max()) if not sure.all() else sure
        wrong = int((classes != labels)[more].sum())
        assert sure.all() or wrong + 1 > 0.1 * (int(more.sum()) + 1), "not one answer fewer than possible is filed"


def test_a_threshold_is_the_lowest_that_keeps_its_promise() -> None:
    confidence = np.array([0.99] * 100 + [0.9] * 100 + [0.8] * 100 + [0.7] * 100)
    right = np.ones(400, bool)
    right[[5, 205, 206, 207, 208, 209, 210, 350, 351]] = False  # 1 of 100, 1 of 200, 7 of 300, 9 of 400
    assert threshold(confidence, right, 0.99) == 0.9  # (1 + 1) / (200 + 1)
    assert threshold(confidence, right, 0.97) == 0.7
    assert threshold(confidence, right, 0.9999) is None
    shuffled = np.random.default_rng(0).permutation(400)
    assert threshold(confidence[shuffled], right[shuffled], 0.99) == 0.9


def test_a_few_products_promise_nothing() -> None:
    assert threshold(np.full(50, 0.999), np.ones(50, bool), 0.99) is None
    assert threshold(np.full(120, 0.999), np.ones(120, bool), 0.99) == 0.999
    assert threshold(np.empty(0), np.empty(0, bool), 0.99) is None
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=CLASSES)).eval()
    calibrate_head(head, embeddings(20, seed=0), precision=0.99)
    assert head.sure_from.tolist() == [NEVER] * 3


def test_filing_and_shares_count_the_surest() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.random(500).round(2)
    right = generator.random(500) < confidence
    found = filing(confidence, right, 0.8)
    assert found.share == np.mean(confidence >= 0.8)
    assert found.precision == pytest.approx(right[confidence >= 0.8].mean())
    assert filing(confidence, right, 1.5).precision is None
    shares = [np.mean(confidence >= low) for low in np.unique(confidence) if right[confidence >= low].mean() >= 0.9]
    assert share_at(confidence, right, 0.9) == pytest.approx(max(shares))
    assert share_at(confidence, np.zeros(500, bool), 0.9) == 0


def test_mistakes_found_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = np.random.default_rng(2)
    confidence, right = generator.integers(0, 20, 200), generator.random(200) < 0.7
    pairs = [(a > b) + 0.5 * (a == b) for a in confidence[right] for b in confidence[~right]]
    assert mistakes_found(confidence, right) == pytest.approx(np.mean(pairs))
    assert mistakes_found(confidence, np.ones(200, bool)) is None


def test_reports_measure_other_products_at_the_chosen_threshold(calibrated_head: CategoryHead) -> None:
    similarities = torch.eye(CLASSES) + 0.5 * (1 - torch.eye(CLASSES))
    divergence = NeighbourDivergence(neighbours_of_similarities(similarities, k=2))
    test = embeddings(2000, seed=4)
    reports = answer_reports(calibrated_head, test, divergence)
    present = {
        way: [
            torch.full((2000, 1), mark) & has
            for mark, has in zip(marks, (test.image_present, test.text_present), strict=True)
        ]
        for way, marks in WAYS.items()
    }
    for way, report in reports.items():
        rows = (torch.cat(present[way], 1) == torch.tensor(WAYS[way])).all(1)
        marks = [mark[rows] for mark in present[way]]
        asked = way_asked(*marks)
        assert set(asked.tolist()) == {way_number(way)}
        with torch.no_grad():
            logits = calibrated_head(test.image_embeds[rows], test.text_embeds[rows], *marks)
        honest = softmax(logits.double().numpy() / report.temperature, axis=1)
        sure = honest.max(1) >= report.sure.confidence - 1e-6
        right = honest.argmax(1) == test.labels[rows].numpy()
        assert report.sure.share == pytest.approx(sure.mean(), abs=1e-3)
        assert report.sure.precision == pytest.approx(right[sure].mean(), abs=2e-3)
        assert report.sure.precision > 0.85
        assert report.mistakes_found_by_probability == pytest.approx(mistakes_found(honest.max(1), right), abs=1e-3)
        assert report.by_probability[0].share >= report.by_probability[-1].share
