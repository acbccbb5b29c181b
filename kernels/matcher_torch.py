"""The matcher on absorbed weights in vectorised torch: what CPU tensors take, and products too long for a tile.

Groups of products of similar size run as rectangular batches in the vectors' dtype (float32, or float64 for float64
weights). The pairs' hidden layer is computed for a few images at a time, so that a product of a thousand images and a
thousand labels needs megabytes and not gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kernels.matcher_weights import UnitWeights, UpdateWeights
from kernels.ragged import PaddedGroup

CHUNK_ELEMENTS = 2**22
"""Numbers of the pairs' hidden layer that exist at a time."""


def match_groups(
    units: Sequence[UnitWeights],
    image_tokens: Tensor,
    label_tokens: Tensor,
    groups: Iterable[PaddedGroup],
    logits: Tensor,
) -> None:
    """Write the groups' logits to their places in the packed `logits`; tokens [N, d] and [M, d] of any float dtype."""
    device, dtype = logits.device, logits.dtype
    for group in groups:
        padded = padded_logits(
            units,
            image_tokens[group.image_index.to(device)].to(dtype),
            label_tokens[group.label_index.to(device)].to(dtype),
            group.image_present.to(device),
            group.label_present.to(device),
        )
        logits[group.pair_index.to(device)] = padded.flatten()[group.pair_place.to(device)]


def padded_logits(
    units: Sequence[UnitWeights], images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor
) -> Tensor:
    """Tokens [B, n, d] and [B, m, d], which of them exist [B, n] and [B, m] bool -> logits [B, n, m]."""
    images = images.masked_fill(~image_present[:, :, None], 0.0)
    labels = labels.masked_fill(~label_present[:, :, None], 0.0)
    for unit in units:
        images = _update(unit.self_update, images, _own_mean(unit, images, image_present))
        labels = _update(unit.self_update, labels, _own_mean(unit, labels, label_present))
        over_labels = edge_logits(unit, images, labels)
        if unit.cross_update is None:
            break
        over_images = edge_logits(unit, labels, images)
        images, labels = (
            _update(unit.cross_update, images, _mean(over_labels, labels, label_present)),
            _update(unit.cross_update, labels, _mean(over_images, images, image_present)),
        )
    return over_labels


def edge_logits(unit: UnitWeights, queries: Tensor, keys: Tensor) -> Tensor:
    """f_edge of every pair: [B, n, d], [B, m, d] -> [B, n, m]."""
    query, key = queries @ unit.edge_query + unit.edge_bias, keys @ unit.edge_key
    rows = max(1, CHUNK_ELEMENTS // max(1, key.numel()))
    parts = [(part[:, :, None] + key[:, None]).relu() @ unit.edge_weight for part in query.split(rows, dim=1)]
    return torch.cat(parts, dim=1)


def _own_mean(unit: UnitWeights, tokens: Tensor, present: Tensor) -> Tensor:
    scores = (tokens @ unit.score + unit.score_bias) @ tokens.transpose(1, 2)
    return _mean(scores, tokens, present)


def _mean(scores: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
    """softmax(scores) over the tokens that exist, times the tokens."""
    return scores.masked_fill(~present[:, None, :], float("-inf")).softmax(-1) @ tokens


def _update(update: UpdateWeights, tokens: Tensor, mean: Tensor) -> Tensor:
    hidden = (torch.cat([tokens, mean], dim=-1) @ update.input + update.input_bias).relu()
    return tokens + hidden @ update.output + update.output_bias
