"""The matcher stack: ragged and padded forms agree, products are independent, the count of its weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kernels.ragged import split_logits
from models.matcher import Matcher, MatcherConfig

SIZES = [(3, 4), (0, 3), (5, 0), (2, 8), (2, 2), (1, 1), (0, 0), (9, 12)]


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def batch(sizes: list[tuple[int, int]], width: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, labels = [n for n, _ in sizes], [m for _, m in sizes]
    return (
        torch.randn(sum(images), width, generator=generator),
        torch.randn(sum(labels), width, generator=generator),
        cumulative(images),
        cumulative(labels),
    )


def matcher(**choice: object) -> Matcher:
    torch.manual_seed(0)
    return Matcher(MatcherConfig.model_validate({"embed_dim": 32, "hidden_dim": 24, **choice}))


@pytest.mark.parametrize(
    "choice", [{}, {"edge": "dot_product"}, {"cross_attention": False}, {"num_units": 1}], ids=lambda c: str(c)
)
def test_a_product_alone_has_the_logits_it_has_in_a_ragged_batch(choice: dict[str, object]) -> None:
    network, (images, labels, cu_images, cu_labels) = matcher(**choice), batch(SIZES)
    together = split_logits(network(images, labels, cu_images, cu_labels), cu_images, cu_labels)
    assert [tuple(logits.shape) for logits in together] == SIZES
    for product, logits in enumerate(together):
        own_images = images[cu_images[product] : cu_images[product + 1]]
        own_labels = labels[cu_labels[product] : cu_labels[product + 1]]
        alone = network(own_images, own_labels, cumulative([len(own_images)]), cumulative([len(own_labels)]))
        torch.testing.assert_close(logits.flatten(), alone, atol=1e-5, rtol=0)


def test_padding_of_any_content_changes_nothing() -> None:
    network, (images, labels, cu_images, cu_labels) = matcher(), batch([(3, 5)])
    expected = network(images, labels, cu_images, cu_labels).view(3, 5)
    wide_images = torch.cat([images, torch.full((4, 32), float("nan"))])[None]
    wide_labels = torch.cat([labels, torch.full((2, 32), float("inf"))])[None]
    padded = network.padded(wide_images, wide_labels, torch.arange(7)[None] < 3, torch.arange(7)[None] < 5)
    torch.testing.assert_close(padded[0, :3, :5], expected, atol=1e-5, rtol=0)
    assert (padded[0, :3].softmax(-1)[:, 5:] == 0).all()


def test_order_of_images_and_of_labels_goes_through_to_the_logits() -> None:
    network, (images, labels, cu_images, cu_labels) = matcher(), batch([(4, 6)])
    expected = network(images, labels, cu_images, cu_labels).view(4, 6)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 1, 0, 4, 2, 3])
    permuted = network(images[rows], labels[columns], cu_images, cu_labels).view(4, 6)
    torch.testing.assert_close(permuted, expected[rows][:, columns], atol=1e-5, rtol=0)


def test_a_label_depends_on_the_other_images_and_labels_of_its_product() -> None:
    network, (images, labels, cu_images, cu_labels) = matcher(), batch([(3, 3)])
    before = network(images, labels, cu_images, cu_labels).view(3, 3)
    changed = network(torch.cat([images[:2], images[2:] + 1]), labels, cu_images, cu_labels).view(3, 3)
    assert (changed[:2] - before[:2]).abs().max() > 1e-3


def test_every_parameter_is_trained() -> None:
    network, (images, labels, cu_images, cu_labels) = matcher(), batch(SIZES)
    logits = split_logits(network(images, labels, cu_images, cu_labels), cu_images, cu_labels)
    torch.stack([x.log_softmax(-1).diagonal().sum() for x in logits if x.numel()]).sum().backward()
    untrained = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untrained == []


def test_weights_at_full_size() -> None:
    network = Matcher(MatcherConfig())
    matrices = [p.numel() for p in network.parameters() if p.dim() == 2]
    assert sum(matrices) == 47 * 128**2 + 3 * 128


@pytest.mark.parametrize(
    ("cu_images", "message"),
    [
        ([0, 2], "0 to 3"),
        ([0, 4, 3], "never to fall, got \\[4, 3\\] for product 1"),
        ([1, 2, 3], "got 1 to 3"),
        ([0, 3], "same number of products, got 1 and 2"),
    ],
)
def test_cumulative_lengths_that_do_not_fit_are_refused(cu_images: list[int], message: str) -> None:
    images, labels = torch.randn(3, 32), torch.randn(4, 32)
    with pytest.raises(ValueError, match=message):
        matcher()(images, labels, torch.tensor(cu_images, dtype=torch.int32), torch.tensor([0, 1, 4]))


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_tokens: expected \[tokens, 32\], got \(4, 31\)"):
        matcher()(torch.randn(3, 32), torch.randn(4, 31), torch.tensor([0, 3]), torch.tensor([0, 4]))
