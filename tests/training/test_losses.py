"""Losses of the categorizer against dense float64 references, and their gradients against finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.labels import (
    LabelScheme,
    NeighbourTable,
    neighbours_of_embeddings,
    one_hot,
    uniform,
)
from training.losses import LabelLoss, class_weights, code_loss, focal_loss

CLASSES, K = 23, 5
REPRESENTATIONS = ["one_hot", "uniform", "neighbour_uniform", "neighbour_semantic", "curriculum"]


def batch(rows: int = 16, classes: int = CLASSES, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(0, classes, (rows,), generator=generator)


def targets(representation: str, progress: float = 0.5) -> NeighbourTable:
    vectors = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    scheme = LabelScheme(representation)  # type: ignore[arg-type]
    return scheme.targets(neighbours_of_embeddings(vectors, K), progress)


def dense_targets(table: NeighbourTable) -> Tensor:
    dense = torch.full((table.classes, table.classes), table.background, dtype=torch.float64)
    return dense.scatter(1, table.ids.long(), table.weights.double())


def dense_focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = logits.softmax(dim=1)[torch.arange(len(labels)), labels]
    return -((1 - p) ** gamma) * p.log()


def dense_divergence(logits: Tensor, labels: Tensor, table: NeighbourTable) -> Tensor:
    wanted = dense_targets(table)[labels]
    return torch.where(wanted > 0, wanted * (wanted.log() - logits.softmax(dim=1).log()), 0.0).sum(dim=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.floats(0, 5), st.floats(0.1, 6), st.integers(0, 10**6))
def test_focal_loss_is_its_definition(rows: int, gamma: float, scale: float, seed: int) -> None:
    logits, labels = batch(rows, scale=scale, seed=seed)
    torch.testing.assert_close(focal_loss(logits, labels, gamma, reduction="none"), dense_focal(logits, labels, gamma))


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, labels = batch()
    torch.testing.assert_close(focal_loss(logits, labels, gamma=0.0), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_focal_loss(gamma: float) -> None:
    logits, labels = batch(4, 6)
    weight = torch.rand(6, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal_loss(z, labels % 6, gamma, weight), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("sure_of", [0, 1])
def test_focal_loss_of_a_network_that_is_sure_is_finite(gamma: float, sure_of: int) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    logits[0, sure_of] = 1e4
    logits.requires_grad_()
    loss = focal_loss(logits, torch.tensor([0]), gamma)
    loss.backward()
    assert loss.item() == pytest.approx(0.0 if sure_of == 0 else 1e4)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, labels = batch()
    half = logits.bfloat16()
    loss = focal_loss(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), focal_loss(half.double(), labels), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_label_loss_is_focal_plus_divergence_to_the_dense_target(representation: str, kl_weight: float) -> None:
    table = targets(representation)
    logits, labels = batch()
    weight = torch.rand(CLASSES, generator=torch.Generator().manual_seed(2)) + 0.5
    found = LabelLoss(table, gamma=1.5, kl_weight=kl_weight, class_weight=weight)(logits, labels, "none")
    expected = weight.double()[labels] * dense_focal(logits, labels, 1.5)
    expected = expected + kl_weight * dense_divergence(logits, labels, table)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_gradients_of_label_loss(representation: str) -> None:
    logits, labels = batch(4)
    loss = LabelLoss(targets(representation))
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_divergence_is_zero_where_the_prediction_is_the_target(representation: str) -> None:
    table = targets(representation)
    labels = torch.arange(CLASSES)
    logits = dense_targets(table).clamp(min=1e-300).log()
    divergence = LabelLoss(table, kl_weight=1.0)(logits, labels, "none") - focal_loss(logits, labels, reduction="none")
    torch.testing.assert_close(divergence, torch.zeros_like(divergence), atol=1e-6, rtol=0)


def test_uniform_without_mass_off_the_class_gives_exactly_the_loss_of_one_hot() -> None:
    table = targets("neighbour_semantic")
    logits, labels = batch()
    assert torch.equal(LabelLoss(uniform(table, 0.0))(logits, labels), LabelLoss(one_hot(table))(logits, labels))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_mean_is_over_the_rows_that_are_not_ignored(representation: str) -> None:
    loss = LabelLoss(targets(representation))
    logits, labels = batch()
    labels[::3] = -100
    counted = labels != -100
    torch.testing.assert_close(loss(logits, labels), loss(logits[counted], labels[counted]))
    torch.testing.assert_close(focal_loss(logits, labels), focal_loss(logits[counted], labels[counted]))
    assert not loss(logits, labels, "none")[~counted].any()
    nothing = loss(logits.requires_grad_(), torch.full_like(labels, -100))
    assert nothing.item() == 0
    nothing.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_new_targets_take_effect_and_stay_out_of_checkpoints() -> None:
    loss = LabelLoss(targets("curriculum", progress=0.0))
    logits, labels = batch()
    loss.set_targets(targets("curriculum", progress=1.0))
    assert torch.equal(loss(logits, labels), LabelLoss(targets("curriculum", progress=1.0))(logits, labels))
    loss.set_targets(targets("uniform"))
    assert torch.equal(loss(logits, labels), LabelLoss(targets("uniform"))(logits, labels))
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    "settings_", [{"kl_weight": -0.5}, {"kl_weight": math.nan}, {"gamma": -1.0}, {"gamma": math.inf}]
)
def test_weights_of_the_terms_out_of_range_are_named(settings_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(settings_.values())))):
        LabelLoss(targets("one_hot"), **settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [CLASSES, CLASSES + 40, -1])
@pytest.mark.parametrize("representation", ["uniform", "neighbour_semantic"])
def test_label_out_of_range_is_named(representation: str, wrong: int) -> None:
    logits, labels = batch()
    labels[7] = wrong
    for loss in (LabelLoss(targets(representation)), focal_loss):
        with pytest.raises(ValueError, match=f"label {wrong} in row 7 is out of range: there are {CLASSES} classes"):
            loss(logits, labels)


def test_class_weights_that_do_not_fit_are_named() -> None:
    table = targets("one_hot")
    with pytest.raises(ValueError, match=rf"class_weight must be \[{CLASSES}\]"):
        LabelLoss(table, class_weight=torch.ones(CLASSES + 1))
    with pytest.raises(ValueError, match=r"weight of class 3 must be finite and ≥ 0; got -1\.0"):
        LabelLoss(table, class_weight=torch.ones(CLASSES).index_fill(0, torch.tensor([3]), -1.0))
    with pytest.raises(ValueError, match="23 classes, the new targets 9"):
        LabelLoss(table).set_targets(neighbours_of_embeddings(torch.randn(9, 4), 2))


def test_inverse_square_root_and_effective_number_are_their_definitions() -> None:
    counts = torch.tensor([1, 100, 10_000, 0])
    root = class_weights(counts, "inverse_sqrt")
    assert (root[0] / root[1]).item() == pytest.approx(10)
    assert (root[0] / root[2]).item() == pytest.approx(100)
    assert root[3] == root[0]
    beta = 0.99
    number = class_weights(counts, "effective_number", beta)
    assert (number[0] / number[1]).item() == pytest.approx((1 - beta**100) / (1 - beta))
    assert torch.equal(class_weights(counts, "none"), torch.ones(4))


@pytest.mark.parametrize("weighting", ["none", "inverse_sqrt", "effective_number"])
def test_class_weights_leave_the_scale_of_the_loss(weighting: str) -> None:
    counts = torch.tensor([3, 0, 500, 17, 40_000])
    weight = class_weights(counts, weighting)  # type: ignore[arg-type]
    assert ((weight * counts).sum() / counts.sum()).item() == pytest.approx(1.0, rel=1e-5)


def test_bad_counts_are_named() -> None:
    for counts, said in (([1, -2], "-2"), ([0, 0], "every class has 0")):
        with pytest.raises(ValueError, match=said):
            class_weights(torch.tensor(counts), "inverse_sqrt")
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\); got 1.0"):
        class_weights(torch.tensor([1]), "effective_number", 1.0)
    with pytest.raises(ValueError, match="got 'log'"):
        class_weights(torch.tensor([1]), "log")  # type: ignore[arg-type]


def test_code_loss_is_the_mean_binary_cross_entropy_of_the_features() -> None:
    codes = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=torch.uint8)
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.0, -0.7], [9.0, 9.0, 9.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0, -100])
    expected = [
        -sum(math.log(1 / (1 + math.exp(-z if bit else z))) for z, bit in zip(row, code, strict=True)) / 3
        for row, code in zip(logits.tolist(), [[1, 0, 1], [0, 1, 1]], strict=False)
    ]
    assert code_loss(logits, labels, codes).item() == pytest.approx(sum(expected) / 2)
    assert torch.autograd.gradcheck(lambda z: code_loss(z, labels, codes), logits.requires_grad_())


def test_code_loss_names_what_does_not_fit() -> None:
    codes = torch.zeros(4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must share F"):
        code_loss(torch.zeros(2, 5), torch.tensor([0, 1]), codes)
    with pytest.raises(ValueError, match="label 4 in row 1"):
        code_loss(torch.zeros(2, 3), torch.tensor([0, 4]), codes)
