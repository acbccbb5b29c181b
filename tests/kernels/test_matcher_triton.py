"""Kernel 2 through its front door, against float64: on the GPU, or in Triton's interpreter without one.

The interpreter must be chosen before Triton is imported, so test_interpreter.py runs this file in a process of its own.
There everything is float32 and 16 wide: its products of bfloat16 are not reliable, and it is slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import matcher_torch
from kernels.matcher_weights import MatcherWeights, UnitWeights
from kernels.ragged import RaggedProducts
from tests.kernels.label_kl_problem import norm_error
from tests.kernels.matcher_problem import Problem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip(
        "needs a GPU; without one test_interpreter.py runs this file under TRITON_INTERPRET=1", allow_module_level=True
    )
matcher_triton = pytest.importorskip("kernels.matcher_triton")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
DTYPE, WIDTH = (torch.float32, 16) if INTERPRETED else (torch.bfloat16, 128)
# bfloat16 rounds each layer's operands: the error is that of a dozen roundings, as in plain torch of that type.
LIMIT = 1e-5 if INTERPRETED else 2e-2
MIXED = [(3, 4), (0, 3), (5, 0), (1, 1), (0, 0), (8, 16), (2, 9)]


def random(sizes: list[tuple[int, int]], units: int = 2, seed: int = 0, width: int = WIDTH) -> Problem:
    return Problem.random(sizes, width, units, dtype=DTYPE, device=DEVICE, seed=seed)


def lengths_of(problem: Problem) -> RaggedProducts:
    return RaggedProducts.from_cumulative(*problem.lengths, len(problem.image_tokens), len(problem.label_tokens))


def check(problem: Problem) -> None:
    logits, exact = problem.solve(), problem.exact()
    assert logits.shape == exact.shape
    assert norm_error(logits, exact) <= LIMIT
    if INTERPRETED:
        torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.fixture
def no_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product must come out of the kernel."""

    def refuse(*groups: object) -> None:
        raise AssertionError("a product left the kernel")

    monkeypatch.setattr(matcher_torch, "padded_logits", refuse)


@pytest.mark.usefixtures("no_torch_path")
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (32, 1), (7, 24), (16, 17), (31, 33), (32, 64)])
def test_one_product_of_any_size(size: tuple[int, int]) -> None:
    check(random([size], units=3))


@pytest.mark.usefixtures("no_torch_path")
@pytest.mark.parametrize(("width", "shared_bytes"), [(64, 2**16), (128, 2**16), (128, None)])
def test_weights_that_stream_in_several_blocks(
    width: int, shared_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at full size: two or four blocks of a square matrix, twice as many of a hidden layer, through three units."""
    if shared_bytes is not None:
        monkeypatch.setattr(matcher_triton, "_device", lambda device: (1, shared_bytes))
    check(random([(3, 4), (1, 6), (9, 14)], units=3, width=width))


@settings(
    deadline=None,
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@pytest.mark.usefixtures("no_torch_path")
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), max_size=6),
    units=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_ragged_mix(sizes: list[tuple[int, int]], units: int, seed: int) -> None:
    check(random(sizes, units, seed))


@pytest.mark.usefixtures("no_torch_path")
@pytest.mark.parametrize("tile", matcher_triton.TILES)
def test_every_size_of_tile(tile: int) -> None:
    problem = random([*MIXED, (1, 7), (6, 2)])
    lengths = lengths_of(problem)
    plan = matcher_triton.fill_tiles(lengths, tile)
    logits = torch.full((lengths.pairs,), float("nan"), device=DEVICE)
    tokens = (problem.image_tokens, problem.label_tokens)
    assert matcher_triton.match_tiles(problem.weights, *tokens, lengths, logits, plan) == []
    assert norm_error(logits, problem.exact()) <= LIMIT


def test_a_product_alone_has_the_logits_it_has_among_others() -> None:
    problem = random([*MIXED, (9, 12)])
    for product, logits in enumerate(problem.solve_each()):
        alone = problem.select([product]).solve()
        torch.testing.assert_close(alone, logits.flatten(), atol=1e-5, rtol=0)


def test_order_of_products_changes_nothing() -> None:
    problem, order = random(MIXED), [5, 0, 6, 3, 1, 2, 4]
    together = problem.solve_each()
    for product, logits in zip(order, problem.select(order).solve_each(), strict=True):
        torch.testing.assert_close(logits, together[product], atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["images", "labels"])
def test_a_token_that_is_not_finite_ruins_its_own_product_alone(side: str, value: float) -> None:
    problem = random([(2, 3), (2, 2), (3, 4)])
    expected = problem.solve_each()
    images, labels = problem.image_tokens.clone(), problem.label_tokens.clone()
    (images if side == "images" else labels)[3, 5] = value  # of the second product
    first, second, third = problem.changed(images, labels).solve_each()
    assert second.isnan().all()
    torch.testing.assert_close(first, expected[0], atol=0, rtol=0)
    torch.testing.assert_close(third, expected[2], atol=0, rtol=0)


@pytest.mark.parametrize("layout", ["columns", "row gap", "off by one", "transposed", "every other row", "one row"])
def test_layout_of_the_tokens_changes_nothing(layout: str) -> None:
    problem = random([(3, 5), (2, 3)])
    views: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
        "columns": lambda x, rows: x[:rows, : 2 * WIDTH : 2],
        "row gap": lambda x, rows: x[:rows, :WIDTH],
        "off by one": lambda x, rows: x[:rows, 1 : WIDTH + 1],
        "transposed": lambda x, rows: x.view(-1)[: rows * WIDTH].view(WIDTH, rows).T,
        "every other row": lambda x, rows: x[: 2 * rows : 2, :WIDTH],
        "one row": lambda x, rows: x[:1, :WIDTH].expand(rows, WIDTH),
    }
    placed = []
    for tokens in (problem.image_tokens, problem.label_tokens):
        view = views[layout](torch.randn(32, 4 * WIDTH, device=DEVICE).to(DTYPE), len(tokens))
        if layout == "one row":
            tokens = view.clone()
        else:
            view.copy_(tokens)
        placed.append((view, tokens.contiguous()))
    expected = problem.changed(placed[0][1], placed[1][1]).solve()
    logits = problem.changed(placed[0][0], placed[1][0]).solve()
    torch.testing.assert_close(logits, expected, atol=0, rtol=0)


def test_products_too_long_for_a_tile_fall_back_with_the_same_result() -> None:
    problem = random([(2, 3), (60, 80), (0, 200), (4, 5), (200, 1)])
    assert matcher_triton.fill_tiles(lengths_of(problem), 128).long == [1, 2, 4]
    check(problem)
    logits = problem.solve_each()
    for product in (0, 3):
        torch.testing.assert_close(problem.select([product]).solve(), logits[product].flatten(), atol=1e-5, rtol=0)


def test_weights_are_unpacked_for_products_too_long_for_a_tile_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []

    def units(weights: MatcherWeights) -> list[UnitWeights]:
        unpacked.append(weights)
        return [weights._unit(index) for index in range(weights.num_units)]

    short, long = random([(2, 3), (4, 5)]), random([(2, 3), (60, 80)])
    monkeypatch.setattr(MatcherWeights, "units", property(units))
    short.solve()
    assert len(unpacked) == 0
    long.solve()
    assert len(unpacked) == 1


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=60),
    tile=st.sampled_from(matcher_triton.TILES),
)
def test_every_product_is_in_one_tile_that_holds_it_or_is_long(sizes: list[tuple[int, int]], tile: int) -> None:
    counts = torch.tensor([(0, 0), *sizes])
    cu_images, cu_labels = counts.cumsum(0).T
    lengths = RaggedProducts.from_cumulative(cu_images, cu_labels, int(cu_images[-1]), int(cu_labels[-1]))
    plan = matcher_triton.fill_tiles(lengths, tile)
    placed = [product for first, end in plan.tiles for product in range(first, end)]
    assert sorted([*placed, *plan.long]) == list(range(len(sizes)))
    assert placed == sorted(placed)
    for first, end in plan.tiles:
        assert sum(n + m for n, m in sizes[first:end]) <= tile
        assert 1 <= end - first <= tile // 2
    assert plan.long == [product for product, (n, m) in enumerate(sizes) if n + m > tile]


def test_few_products_get_a_block_each_and_many_share_one() -> None:
    few, many = lengths_of(random([(8, 16)] * 64)), lengths_of(random([(8, 16)] * 4096))
    plan = matcher_triton.plan_tiles(few, 132)
    assert (plan.tile, len(plan.tiles)) == (32, 64)
    plan = matcher_triton.plan_tiles(many, 132)
    assert (plan.tile, len(plan.tiles)) == (128, 820)
