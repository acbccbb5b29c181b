"""The weights of the matcher as kernel 2 takes them: absorbed, and packed in the order in which it streams them.

Absorbed as in DeepSeek-V2's latent attention: scores are x M x^T with M = W_q W_k^T / sqrt(d), and the values' matrix
goes into the first layer of the update, so that a message is a mean of tokens. That leaves 39 d^2 of the network's
47 d^2 weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTHS = (16, 32, 64, 128)
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
            raise ValueError(f"dtype: expected one of {names_of(WEIGHT_DTYPES)}, got {dtype}")
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


def _update(rows: Tensor, vectors: Tensor) -> UpdateWeights:
    d = rows.shape[1]
    return UpdateWeights(
        input=rows[: 4 * d].view(2 * d, 2 * d),
        input_bias=vectors[:2].flatten(),
        output=rows[4 * d :],
        output_bias=vectors[2],
    )


def names_of(dtypes: Sequence[torch.dtype]) -> str:
    """Types as a message lists them: "float32, bfloat16"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
