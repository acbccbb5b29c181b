"""Kernel 2's front door on the CPU: the torch path against float64, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import matcher_torch
from kernels.matcher import match_products
from kernels.matcher_weights import MatcherWeights
from models.matcher import Matcher, MatcherConfig
from tests.kernels.matcher_problem import Problem, cumulative, random_weights

MIXED = [(3, 4), (0, 3), (5, 0), (1, 1), (32, 64), (0, 0), (8, 16), (2, 9)]


@pytest.mark.parametrize("units", [1, 2, 3])
def test_equals_the_float64_reference(units: int) -> None:
    problem = Problem.random(MIXED, units=units)
    torch.testing.assert_close(problem.solve().double(), problem.exact(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [16, 12])
def test_packed_weights_are_the_network(hidden: int) -> None:
    torch.manual_seed(0)
    network = Matcher(MatcherConfig(embed_dim=16, hidden_dim=hidden)).double()
    problem = Problem.random(MIXED, dtype=torch.float64)
    expected = network(problem.image_tokens, problem.label_tokens, *problem.lengths)
    solved = replace(problem, weights=network.packed_weights(torch.float64)).solve()
    torch.testing.assert_close(solved, expected.detach(), atol=1e-12, rtol=1e-12)


def test_bfloat16_weights_and_tokens_are_computed_in_float32() -> None:
    problem = Problem.random(MIXED, dtype=torch.bfloat16)
    logits = problem.solve()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), problem.exact(), atol=1e-5, rtol=1e-5)


def test_long_products_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.random([(70, 90), (2, 300)])
    monkeypatch.setattr(matcher_torch, "CHUNK_ELEMENTS", 90 * 16 * 8)
    torch.testing.assert_close(problem.solve().double(), problem.exact(), atol=1e-5, rtol=1e-5)


def test_no_gradient_is_recorded() -> None:
    problem = Problem.random([(2, 3)])
    assert not problem.changed(problem.image_tokens.requires_grad_(), problem.label_tokens).solve().requires_grad


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"edge": "dot_product"}, "dot_product"),
        ({"cross_attention": False}, "cross_attention=False"),
        ({"hidden_dim": 64}, "hidden_dim=64"),
        ({"embed_dim": 48}, "got 48"),
    ],
)
def test_networks_that_the_kernel_does_not_have_are_refused(config: dict[str, object], what: str) -> None:
    network = Matcher(MatcherConfig.model_validate({"embed_dim": 32, "hidden_dim": 32, **config}))
    with pytest.raises(ValueError, match=what):
        network.packed_weights()


def test_units_without_a_cross_update_in_the_middle_are_refused() -> None:
    first, last = random_weights(16, units=2).units
    with pytest.raises(ValueError, match="all but the last"):
        MatcherWeights.pack([last, first], torch.float32)


def test_arguments_that_do_not_fit_are_refused() -> None:
    weights, images, labels = random_weights(16), torch.randn(2, 16), torch.randn(3, 16)
    lengths = cumulative([2]), cumulative([3])
    with pytest.raises(ValueError, match=r"image_tokens: expected \[tokens, 16\], got \(2, 15\)"):
        match_products(weights, images[:, 1:], labels, *lengths)
    with pytest.raises(ValueError, match=r"label_tokens: expected one of .*got torch.int64"):
        match_products(weights, images, labels.long(), *lengths)
    with pytest.raises(ValueError, match=r"label_tokens: expected image_tokens' torch.float32, got torch.float64"):
        match_products(weights, images, labels.double(), *lengths)
    with pytest.raises(ValueError, match="image_tokens: expected device cpu, got meta"):
        match_products(weights, images.to("meta"), labels, *lengths)
    with pytest.raises(ValueError, match="cu_labels: expected to run from 0 to 3"):
        match_products(weights, images, labels, lengths[0], cumulative([4]))
