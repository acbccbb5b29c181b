"""The matcher of system 4 for serving: a ragged batch of products in one launch, the front door of kernel 2.

The weights come absorbed (as in DeepSeek-V2's latent attention): scores are x M x^T with M = W_q W_k^T / sqrt(d), and
the values' matrix goes into the first layer of the update, so that a message is a mean of tokens. That leaves 39 d^2 of
the network's 47 d^2 weights, packed in the order in which the kernel streams them. bfloat16 weights on CUDA go to
matcher_triton.py, all others, and products too long for a tile, to matcher_torch.py. For inference: no gradient.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import matcher_torch
from kernels.ragged import RaggedProducts

WIDTHS = (16, 32, 64, 128)
TOKEN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class UpdateWeights:
    """x <- x + relu([x, y] input + input_bias) output + output_bias, y the attention's mean of tokens.

    input [2d, 2d], input_bias [2d], output [2d, d], output_bias [d].
    """

    input: Tensor
    input_bias: Tensor
    output: Tensor
    output_bias: Tensor


@dataclass(frozen=True)
class UnitWeights:
    """One unit: scores (x score + score_bias) x^T within a side, and f_edge across.

    f_edge(q, k) = edge_weight . relu(q edge_query + edge_bias + k edge_key). score, edge_query and edge_key [d, d], the
    vectors [d]; `cross_update` is None in the last unit.
    """

    score: Tensor
    score_bias: Tensor
    self_update: UpdateWeights
    edge_query: Tensor
    edge_bias: Tensor
    edge_key: Tensor
    edge_weight: Tensor
    cross_update: UpdateWeights | None


@dataclass(frozen=True)
class MatcherWeights:
    """All units in streaming order: `matrices` [(15 U - 6) d^2] and `vectors` [9 U - 3, d], float32 or float64.

    A unit's matrices, each row-major: score, input and output of the self update, edge_query, edge_key, input and
    output of the cross update. Its vectors: score_bias, input_bias (two rows), output_bias, edge_bias, edge_weight, and
    of the cross update input_bias and output_bias.
    """

    matrices: Tensor
    vectors: Tensor

    @classmethod
    def pack(cls, units: Sequence[UnitWeights], dtype: torch.dtype) -> MatcherWeights:
        """Lay units out, matrices in `dtype`.

        Raises:
            ValueError: a width or type that the kernel does not have, or a cross update missing or too many.
        """
        width = units[0].score.shape[0]
        if width not in WIDTHS:
            raise ValueError(f"d: expected one of {WIDTHS}, got {width}")
        if dtype not in WEIGHT_DTYPES:
            raise ValueError(f"dtype: expected one of {_names(WEIGHT_DTYPES)}, got {dtype}")
        last = [unit.cross_update is None for unit in units]
        if last != [False] * (len(units) - 1) + [True]:
            raise ValueError(f"units: expected a cross update in all but the last, got none in {last}")
        matrices, vectors = [], []
        for unit in units:
            update = unit.self_update
            matrices += [unit.score, update.input, update.output, unit.edge_query, unit.edge_key]
            vectors += [unit.score_bias, update.input_bias, update.output_bias, unit.edge_bias, unit.edge_weight]
            if unit.cross_update is not None:
                matrices += [unit.cross_update.input, unit.cross_update.output]
                vectors += [unit.cross_update.input_bias, unit.cross_update.output_bias]
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        return cls(
            torch.cat([matrix.detach().flatten() for matrix in matrices]).to(dtype),
            torch.cat([vector.detach() for vector in vectors]).to(exact).view(-1, width),
        )

    @property
    def width(self) -> int:
        """Width d of the tokens."""
        return self.vectors.shape[1]

    @property
    def num_units(self) -> int:
        """Number of units U."""
        return (len(self.vectors) + 3) // 9

    @property
    def units(self) -> list[UnitWeights]:
        """Each unit's weights, the matrices in the vectors' dtype."""
        return [self._unit(index) for index in range(self.num_units)]

    def _unit(self, index: int) -> UnitWeights:
        d = self.width
        # Rows of d numbers: a matrix is d of them, an update's 6 d.
        rows = self.matrices.view(-1, d)[15 * d * index : 15 * d * (index + 1)].to(self.vectors.dtype)
        vectors = self.vectors[9 * index : 9 * (index + 1)]
        return UnitWeights(
            score=rows[:d],
            score_bias=vectors[0],
            self_update=_update(rows[d : 7 * d], vectors[1:4]),
            edge_query=rows[7 * d : 8 * d],
            edge_bias=vectors[4],
            edge_key=rows[8 * d : 9 * d],
            edge_weight=vectors[5],
            cross_update=_update(rows[9 * d :], vectors[6:]) if len(rows) > 9 * d else None,
        )


def match_products(
    weights: MatcherWeights, image_tokens: Tensor, label_tokens: Tensor, cu_images: Tensor, cu_labels: Tensor
) -> Tensor:
    """Logits of every image over the labels of its product, for a ragged batch of P products.

    Args:
        weights: on the tokens' device; bfloat16 ones make CUDA tensors take the fused kernel.
        image_tokens: [N, d] float32, bfloat16, float16 or float64, the products' images one product after the other.
        label_tokens: [M, d] of the same dtype, their labels in the same order.
        cu_images, cu_labels: int32 or int64 [P+1] cumulative lengths from 0 to N and to M. Best on the CPU: lengths on
            a GPU are waited for, since they decide how many products share a block.

    Returns:
        Packed logits [sum n_p * m_p], float32 (float64 for float64 weights), row-major n_p x m_p a product, products in
        order. Softmax over the labels is the answer. No product's logits depend on the others, not even on tokens that
        are not finite, which make all logits of their own product NaN.

    Raises:
        ValueError: an argument has the wrong dtype, rank, width or device, or the lengths do not fit the tokens.
    """
    for name, tokens in (("image_tokens", image_tokens), ("label_tokens", label_tokens)):
        if tokens.dim() != 2 or tokens.shape[1] != weights.width:
            raise ValueError(f"{name}: expected [tokens, {weights.width}], got {tuple(tokens.shape)}")
        if tokens.dtype not in TOKEN_DTYPES:
            raise ValueError(f"{name}: expected one of {_names(TOKEN_DTYPES)}, got {tokens.dtype}")
        if tokens.device != weights.matrices.device:
            raise ValueError(f"{name}: expected device {weights.matrices.device}, got {tokens.device}")
    if image_tokens.dtype != label_tokens.dtype:
        raise ValueError(f"label_tokens: expected image_tokens' {image_tokens.dtype}, got {label_tokens.dtype}")
    products = RaggedProducts.from_cumulative(cu_images, cu_labels, len(image_tokens), len(label_tokens))
    logits = torch.empty(products.pairs, dtype=weights.vectors.dtype, device=image_tokens.device)
    long: Sequence[int] = range(len(products))
    with torch.no_grad():
        if _takes_triton(weights.matrices):
            from kernels import matcher_triton

            long = matcher_triton.match_tiles(weights, image_tokens, label_tokens, products, logits)
        matcher_torch.match_groups(weights.units, image_tokens, label_tokens, products.groups(long), logits)
    return logits


def _takes_triton(matrices: Tensor) -> bool:
    """bfloat16 weights on CUDA do; float32 ones in Triton's interpreter, whose bfloat16 products are not reliable."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")
    return matrices.dtype == torch.float32 if interpreted else matrices.is_cuda and matrices.dtype == torch.bfloat16


def _update(rows: Tensor, vectors: Tensor) -> UpdateWeights:
    d = rows.shape[1]
    return UpdateWeights(
        input=rows[: 4 * d].view(2 * d, 2 * d),
        input_bias=vectors[:2].flatten(),
        output=rows[4 * d :],
        output_bias=vectors[2],
    )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
