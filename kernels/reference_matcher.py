"""The matcher in plain float64, a product at a time and a pair at a time: what kernel 2 is tested against.

Written from the definition of the units (kernels/matcher_weights.py), with no padding, no mask and no batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.matcher_weights import MatcherWeights, UnitWeights, UpdateWeights


def match_products(
    weights: MatcherWeights, image_tokens: Tensor, label_tokens: Tensor, cu_images: Tensor, cu_labels: Tensor
) -> Tensor:
    """Packed logits [sum n_p * m_p] in float64; arguments as in `kernels.matcher.match_products`."""
    logits = [image_tokens.new_empty(0, dtype=torch.float64)]
    bounds = zip(cu_images.tolist(), cu_images[1:].tolist(), cu_labels.tolist(), cu_labels[1:].tolist(), strict=False)
    for first_image, last_image, first_label, last_label in bounds:
        images, labels = image_tokens[first_image:last_image], label_tokens[first_label:last_label]
        if len(images) and len(labels):
            logits.append(match_product(weights, images.double(), labels.double()).flatten())
    return torch.cat(logits)


def match_product(weights: MatcherWeights, images: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, m] of one product: images [n, d], labels [m, d], n and m at least 1."""
    for unit in weights.units:
        images, labels = _self_attention(unit, images), _self_attention(unit, labels)
        over_labels = _edges(unit, images, labels)
        if unit.cross_update is not None:
            over_images = _edges(unit, labels, images)
            images, labels = (
                _update(unit.cross_update, images, over_labels.softmax(1) @ labels),
                _update(unit.cross_update, labels, over_images.softmax(1) @ images),
            )
    return over_labels


def _self_attention(unit: UnitWeights, tokens: Tensor) -> Tensor:
    scores = (tokens @ unit.score.double() + unit.score_bias.double()) @ tokens.T
    return _update(unit.self_update, tokens, scores.softmax(1) @ tokens)


def _edges(unit: UnitWeights, queries: Tensor, keys: Tensor) -> Tensor:
    query_weight, key_weight = unit.edge_query.double(), unit.edge_key.double()
    bias, weight = unit.edge_bias.double(), unit.edge_weight.double()
    rows = [((query @ query_weight + bias + keys @ key_weight).relu() @ weight) for query in queries]
    return torch.stack(rows)


def _update(update: UpdateWeights, tokens: Tensor, mean: Tensor) -> Tensor:
    hidden = (torch.cat([tokens, mean], 1) @ update.input.double() + update.input_bias.double()).relu()
    return tokens + hidden @ update.output.double() + update.output_bias.double()
