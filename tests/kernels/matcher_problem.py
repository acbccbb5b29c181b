"""Random ragged batches for kernel 2 and the float64 answer to each, shared by its test files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import reference_matcher
from kernels.matcher import match_products
from kernels.matcher_weights import MatcherWeights, UnitWeights, UpdateWeights
from kernels.ragged import split_logits


def random_weights(
    width: int, units: int = 3, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> MatcherWeights:
    """Weights of the size that keeps tokens and logits near one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator) / shape[0] ** 0.5

    def update() -> UpdateWeights:
        bias, output_bias = normal(2 * width), normal(width)
        return UpdateWeights(normal(2 * width, 2 * width), bias, normal(2 * width, width, scale=0.7), output_bias)

    def unit(last: bool) -> UnitWeights:
        return UnitWeights(
            score=normal(width, width, scale=width**-0.5),
            score_bias=normal(width),
            self_update=update(),
            edge_query=normal(width, width),
            edge_bias=normal(width),
            edge_key=normal(width, width),
            edge_weight=normal(width, scale=2.0),
            cross_update=None if last else update(),
        )

    packed = MatcherWeights.pack([unit(index == units - 1) for index in range(units)], dtype)
    return MatcherWeights(packed.matrices.to(device), packed.vectors.to(device))


def cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@dataclass(frozen=True)
class Problem:
    """Products of sizes (n, m) with their tokens and the weights."""

    weights: MatcherWeights
    image_tokens: Tensor
    label_tokens: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def random(
        cls,
        sizes: Sequence[tuple[int, int]],
        width: int = 16,
        units: int = 3,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        tokens = [torch.randn(sum(side), width, generator=generator) for side in zip((0, 0), *sizes, strict=True)]
        images, labels = (side.to(device, dtype) for side in tokens)
        weights = random_weights(width, units, dtype=dtype, device=device, seed=seed)
        return cls(weights, images, labels, list(sizes))

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """cu_images and cu_labels."""
        return cumulative([n for n, _ in self.sizes]), cumulative([m for _, m in self.sizes])

    def changed(self, image_tokens: Tensor, label_tokens: Tensor) -> Problem:
        return replace(self, image_tokens=image_tokens, label_tokens=label_tokens)

    def select(self, products: Sequence[int]) -> Problem:
        """The given products, in the given order."""
        images = self.image_tokens.split([n for n, _ in self.sizes])
        labels = self.label_tokens.split([m for _, m in self.sizes])
        return Problem(
            self.weights,
            torch.cat([images[product] for product in products]),
            torch.cat([labels[product] for product in products]),
            [self.sizes[product] for product in products],
        )

    def solve(self) -> Tensor:
        """Packed logits of the front door."""
        return match_products(self.weights, self.image_tokens, self.label_tokens, *self.lengths)

    def solve_each(self) -> list[Tensor]:
        """Logits [n, m] of each product."""
        return list(split_logits(self.solve(), *self.lengths))

    def exact(self) -> Tensor:
        """Packed logits in float64."""
        tokens = (self.image_tokens, self.label_tokens)
        return reference_matcher.match_products(self.weights, *tokens, *self.lengths)
