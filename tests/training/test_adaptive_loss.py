"""The adaptive loss: its closed form against a numerical optimum, and gradients against finite ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from training.adaptive_loss import AdaptiveLoss, EqualWeights, GradientAdaptiveLoss, adaptive_weights


@pytest.mark.parametrize("alpha", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_closed_form_is_the_optimum(tasks: int, alpha: float) -> None:
    generator = np.random.default_rng(tasks)
    for _ in range(5):
        sizes = generator.dirichlet(np.full(tasks, 0.5))
        curvature = alpha * tasks - sizes**2
        best = minimize(
            lambda w, c=curvature: 0.5 * float(c @ w**2),
            np.full(tasks, 1 / tasks),
            jac=lambda w, c=curvature: c * w,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        weights = adaptive_weights(torch.from_numpy(sizes), alpha).numpy()
        np.testing.assert_allclose(weights, best.x, atol=1e-6)
        assert (weights > 0).all()
        assert weights.sum() == pytest.approx(1)
        assert (np.argsort(weights) == np.argsort(sizes)).all(), "the task that lags weighs most"


def test_alpha_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 0.5"):
        adaptive_weights(torch.tensor([0.5, 0.5]), 0.5)


def test_the_larger_loss_weighs_more_and_carries_no_gradient() -> None:
    losses = {"slow": torch.tensor(2.0, requires_grad=True), "fast": torch.tensor(0.1, requires_grad=True)}
    weights = AdaptiveLoss()(losses)
    assert weights["slow"] > weights["fast"] > 0
    assert not weights["slow"].requires_grad
    torch.testing.assert_close(weights["slow"] + weights["fast"], torch.tensor(1.0))
    shares = torch.softmax(torch.tensor([2.0, 0.1]), 0)
    torch.testing.assert_close(torch.stack(list(weights.values())), adaptive_weights(shares))


def test_gradient_norms_are_those_of_the_shared_parameters() -> None:
    torch.manual_seed(0)
    shared, heads = nn.Linear(4, 3), nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    inputs = torch.randn(8, 4)
    features = torch.tanh(shared(inputs))
    losses = {"a": heads[0](features).square().mean(), "b": 5 * heads[1](features).square().mean()}
    combiner = GradientAdaptiveLoss(shared.parameters())
    weights = combiner(losses)
    norms = []
    for head, factor in zip(heads, (1, 5), strict=True):
        alone = nn.Linear(4, 3)
        alone.load_state_dict(shared.state_dict())
        (factor * head(torch.tanh(alone(inputs))).square().mean()).backward()
        norms.append(torch.cat([alone.weight.grad.flatten(), alone.bias.grad]).norm())
    sizes = torch.stack(norms) / sum(norms)
    torch.testing.assert_close(torch.stack(list(weights.values())), adaptive_weights(sizes))
    assert all(parameter.grad is None for parameter in shared.parameters()), "to look at gradients leaves none"
    sum(weights[name] * loss for name, loss in losses.items()).backward()  # the graph is still there
    assert not list(combiner.state_dict()), "the shared parameters belong to the model"


def test_equal_weights_sum_to_one() -> None:
    weights = EqualWeights()({"a": torch.tensor(3.0), "b": torch.tensor(1.0), "c": torch.tensor(2.0)})
    assert [float(weight) for weight in weights.values()] == pytest.approx([1 / 3] * 3)
