"""Ragged batches of products: where the images, labels and image-label pairs of each lie in packed tensors.

A batch is packed: the tokens of all products one after the other, cut by cumulative lengths [P+1] as in
FlashAttention's variable-length entry. Logits are packed too, [sum n_p * m_p], row-major n_p x m_p a product. What
wants a rectangular batch takes the products in groups whose sizes lie between the same powers of two, so that one
product with a thousand images does not pad sixty small ones. Sizes up to 8 are one group: padding costs less there
than calling every operator again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 8


@dataclass(frozen=True)
class PaddedGroup:
    """Products of similar size as a rectangular batch [B, n, m]; places beyond a product's own point at token 0.

    All tensors are on the CPU: `image_index` [B, n] and `label_index` [B, m] int64 into the packed tokens,
    `image_present` [B, n] and `label_present` [B, m] bool, and for the pairs that exist `pair_place` (in the flat
    [B * n * m] logits of the group) and `pair_index` (in the packed logits), int64 of one length.
    """

    image_index: Tensor
    image_present: Tensor
    label_index: Tensor
    label_present: Tensor
    pair_place: Tensor
    pair_index: Tensor


@dataclass(frozen=True)
class RaggedProducts:
    """Cumulative lengths of a batch's images, labels and pairs: int64 [P+1] on the CPU, each beginning with 0."""

    cu_images: Tensor
    cu_labels: Tensor
    cu_pairs: Tensor

    @classmethod
    def from_cumulative(cls, cu_images: Tensor, cu_labels: Tensor, images: int, labels: int) -> RaggedProducts:
        """Check cumulative lengths against the number of tokens. Lengths on a GPU are waited for.

        Args:
            cu_images, cu_labels: [P+1] int32 or int64, from 0 to `images` and `labels`, never falling.
            images, labels: tokens there are.

        Raises:
            ValueError: a wrong dtype, rank, length or order, with what was found.
        """
        cu_images = _checked("cu_images", cu_images, images)
        cu_labels = _checked("cu_labels", cu_labels, labels)
        if len(cu_images) != len(cu_labels):
            raise ValueError(
                f"cu_images and cu_labels: expected the same number of products, "
                f"got {len(cu_images) - 1} and {len(cu_labels) - 1}"
            )
        cu_pairs = torch.zeros_like(cu_images)
        torch.cumsum(cu_images.diff() * cu_labels.diff(), 0, out=cu_pairs[1:])
        return cls(cu_images, cu_labels, cu_pairs)

    def __len__(self) -> int:
        return len(self.cu_images) - 1

    @property
    def pairs(self) -> int:
        """Length of the packed logits."""
        return int(self.cu_pairs[-1])

    def groups(self, products: Iterable[int] | None = None) -> list[PaddedGroup]:
        """Rectangular batches of the given products (default: all), leaving out those without a pair."""
        images, labels = self.cu_images.diff().tolist(), self.cu_labels.diff().tolist()
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for product in range(len(self)) if products is None else products:
            n, m = images[product], labels[product]
            if n and m:
                by_size[(max(n, SMALL) - 1).bit_length(), (max(m, SMALL) - 1).bit_length()].append(product)
        return [self._group(torch.tensor(members)) for members in by_size.values()]

    def one_group(self) -> PaddedGroup:
        """All products as one rectangular batch, as wide as the largest."""
        return self._group(torch.arange(len(self)))

    def _group(self, products: Tensor) -> PaddedGroup:
        image_index, image_present = _padded(self.cu_images, products)
        label_index, label_present = _padded(self.cu_labels, products)
        pairs = image_present[:, :, None] & label_present[:, None, :]
        labels = self.cu_labels.diff()[products]
        row, column = torch.arange(image_index.shape[1]), torch.arange(label_index.shape[1])
        index = (self.cu_pairs[products, None] + row * labels[:, None])[:, :, None] + column
        return PaddedGroup(
            image_index,
            image_present,
            label_index,
            label_present,
            pair_place=pairs.flatten().nonzero()[:, 0],
            pair_index=index[pairs],
        )


def split_logits(logits: Tensor, cu_images: Tensor, cu_labels: Tensor) -> list[Tensor]:
    """Views [n_p, m_p] of packed logits [sum n_p * m_p], one a product, for cumulative lengths [P+1]."""
    shapes = list(zip(cu_images.diff().tolist(), cu_labels.diff().tolist(), strict=True))
    return [part.view(n, m) for part, (n, m) in zip(logits.split([n * m for n, m in shapes]), shapes, strict=True)]


def _checked(name: str, cumulative: Tensor, tokens: int) -> Tensor:
    if cumulative.dtype not in (torch.int32, torch.int64) or cumulative.dim() != 1 or not len(cumulative):
        raise ValueError(
            f"{name}: expected int32 or int64 [P+1], got {cumulative.dtype} of shape {tuple(cumulative.shape)}"
        )
    cumulative = cumulative.detach().to("cpu", torch.int64)
    first, last = int(cumulative[0]), int(cumulative[-1])
    if first != 0 or last != tokens:
        raise ValueError(f"{name}: expected to run from 0 to {tokens} (the tokens there are), got {first} to {last}")
    if bool((cumulative.diff() < 0).any()):
        at = int((cumulative.diff() < 0).nonzero()[0])
        raise ValueError(f"{name}: expected never to fall, got {cumulative[at : at + 2].tolist()} for product {at}")
    return cumulative


def _padded(cumulative: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Token indices of products, [B, longest], and which of them are the product's own."""
    lengths = cumulative.diff()[products]
    place = torch.arange(int(lengths.max()))
    present = place < lengths[:, None]
    return torch.where(present, cumulative[products, None] + place, 0), present
