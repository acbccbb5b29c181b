"""The colour-label matcher: units of self- and cross-attention between a product's images and its labels.

Systems text §4, in its order: self-attention among the images and among the labels, then cross-attention whose weight
is an MLP of the pair, softmax_j f_edge(q_i, k_j), both with the update x <- x + MLP[x, sum of attention * value]; the
last unit's cross-attention logits of images over labels are the answer. Notable: images and labels share all weights
(as the two sides of SuperGlue, Sarlin et al., CVPR 2020), so that every weight meets every token; the last unit ends at
its logits. At d = hidden = 128, three whole units would be 3 * 18 d^2 = 0.885 M weights in matrices and, for 8 images
and 16 labels, 43.7 MFLOP; without the last update, which nobody reads, it is 47 d^2 = 0.770 M weights and 37.3 MFLOP.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from kernels.matcher_weights import MatcherWeights, UnitWeights, UpdateWeights
from kernels.ragged import RaggedProducts


class MatcherConfig(BaseModel):
    """Widths and number of units; the ablations are f_edge as a dot product and units without cross-attention."""

    model_config = ConfigDict(extra="forbid")

    embed_dim: PositiveInt = 128  # width d of the tokens
    hidden_dim: PositiveInt = 128  # width of f_edge
    num_units: PositiveInt = 3
    edge: Literal["mlp", "dot_product"] = "mlp"
    cross_attention: bool = True


class ResidualUpdate(nn.Module):
    """x + MLP[x, message], the MLP from 2d over 2d to d: 6 d^2 weights."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(2 * embed_dim, 2 * embed_dim)
        self.output = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, tokens: Tensor, message: Tensor) -> Tensor:
        """[B, n, d], [B, n, d] -> [B, n, d]."""
        return tokens + self.output(self.input(torch.cat([tokens, message], dim=-1)).relu())


class SelfUnit(nn.Module):
    """Attention of one side's tokens among themselves, one head, and the update: 9 d^2 weights."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed_dim, embed_dim)
        # A bias of the keys would add the same to all scores of a query: softmax does not see it.
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.update = ResidualUpdate(embed_dim)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """tokens [B, n, d], present [B, n] bool -> [B, n, d]."""
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / math.sqrt(tokens.shape[-1])
        return self.update(tokens, masked_softmax(scores, present) @ self.value(tokens))


class EdgeMLP(nn.Module):
    """f_edge(q, k) = w . relu(W [q, k] + b), an MLP of the pair: 2 d * hidden weights and w.

    W [q, k] = W_q q + W_k k: the first layer is computed once a token, and a pair costs `hidden` additions and products
    instead of 2 d * hidden.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed_dim, hidden_dim)
        self.key = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[B, n, d], [B, m, d] -> logits [B, n, m]."""
        pairs = self.query(queries)[:, :, None] + self.key(keys)[:, None]
        return self.output(pairs.relu()).squeeze(-1)


class EdgeDotProduct(nn.Module):
    """f_edge(q, k) = W_q q . W_k k / sqrt(hidden), the ablation: ordinary attention."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed_dim, hidden_dim)
        self.key = nn.Linear(embed_dim, hidden_dim, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[B, n, d], [B, m, d] -> logits [B, n, m]."""
        return self.query(queries) @ self.key(keys).transpose(1, 2) / math.sqrt(self.key.out_features)


class CrossUnit(nn.Module):
    """Attention of each side's tokens over the other side's, weighted by f_edge, and the update: 9 d^2 weights."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.edge = edge_function(config)
        self.value = nn.Linear(config.embed_dim, config.embed_dim)
        self.update = ResidualUpdate(config.embed_dim)

    def forward(
        self, images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[B, n, d], [B, m, d], [B, n] and [B, m] bool -> the two sides, each updated from the other before."""
        over_labels = masked_softmax(self.edge(images, labels), label_present)
        over_images = masked_softmax(self.edge(labels, images), image_present)
        return (
            self.update(images, over_labels @ self.value(labels)),
            self.update(labels, over_images @ self.value(images)),
        )


class MatcherUnit(nn.Module):
    """Self-attention on both sides, then cross-attention both ways."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.self_unit = SelfUnit(config.embed_dim)
        self.cross_unit = CrossUnit(config) if config.cross_attention else None

    def forward(
        self, images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[B, n, d], [B, m, d], [B, n] and [B, m] bool -> both sides of the same shapes."""
        images, labels = self.self_unit(images, image_present), self.self_unit(labels, label_present)
        if self.cross_unit is None:
            return images, labels
        return self.cross_unit(images, labels, image_present, label_present)


class LastUnit(nn.Module):
    """The unit whose cross-attention logits are the answer: self-attention on both sides, then f_edge."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.self_unit = SelfUnit(config.embed_dim)
        self.edge = edge_function(config)

    def forward(self, images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor) -> Tensor:
        """[B, n, d], [B, m, d], [B, n] and [B, m] bool -> logits [B, n, m]."""
        return self.edge(self.self_unit(images, image_present), self.self_unit(labels, label_present))


class Matcher(nn.Module):
    """Tokens of a product's images and labels to a logit a pair; softmax over the labels is the answer.

    `forward` takes a ragged batch, `padded` a rectangular one (training on equal sizes, ONNX). They share all weights
    and `forward` is defined by `padded`. Tokens are expected normalised (the towers end in a batch norm).
    """

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.config = config
        self.units = nn.ModuleList(MatcherUnit(config) for _ in range(config.num_units - 1))
        self.last_unit = LastUnit(config)

    def forward(self, image_tokens: Tensor, label_tokens: Tensor, cu_images: Tensor, cu_labels: Tensor) -> Tensor:
        """Logits of a ragged batch of P products, product p with n_p images and m_p labels.

        Args:
            image_tokens: [N, d], the products' images one product after the other.
            label_tokens: [M, d], their labels in the same order.
            cu_images, cu_labels: int32 [P+1] cumulative lengths, from 0 to N and to M; 0 images or labels are legal.

        Returns:
            Packed logits [sum n_p * m_p]: product after product, row-major n_p x m_p (`kernels.ragged.split_logits`
            gives the views). No product's logits depend on the other products.

        Raises:
            ValueError: tokens of the wrong width, or cumulative lengths that do not fit them.
        """
        for name, tokens in (("image_tokens", image_tokens), ("label_tokens", label_tokens)):
            if tokens.dim() != 2 or tokens.shape[1] != self.config.embed_dim:
                raise ValueError(f"{name}: expected [tokens, {self.config.embed_dim}], got {tuple(tokens.shape)}")
        products = RaggedProducts.from_cumulative(cu_images, cu_labels, len(image_tokens), len(label_tokens))
        device = image_tokens.device
        logits, places = [image_tokens.new_empty(0)], [torch.empty(0, dtype=torch.int64)]
        for group in products.groups():
            padded = self.padded(
                image_tokens[group.image_index.to(device)],
                label_tokens[group.label_index.to(device)],
                group.image_present.to(device),
                group.label_present.to(device),
            )
            logits.append(padded.flatten()[group.pair_place.to(device)])
            places.append(group.pair_index)
        packed = torch.cat(logits)
        return torch.empty_like(packed).index_copy(0, torch.cat(places).to(device), packed)

    def padded(
        self, image_tokens: Tensor, label_tokens: Tensor, image_present: Tensor, label_present: Tensor
    ) -> Tensor:
        """Logits of a rectangular batch.

        Args:
            image_tokens, label_tokens: [B, n, d] and [B, m, d]; what stands in absent places does not matter.
            image_present, label_present: [B, n] and [B, m] bool.

        Returns:
            Logits [B, n, m]; those of absent labels are the type's lowest number, so that softmax over the labels
            gives them nothing. Rows of absent images mean nothing.
        """
        images = image_tokens.masked_fill(~image_present[:, :, None], 0.0)
        labels = label_tokens.masked_fill(~label_present[:, :, None], 0.0)
        for unit in self.units:
            images, labels = unit(images, labels, image_present, label_present)
        logits = self.last_unit(images, labels, image_present, label_present)
        return without_absent(logits, label_present)

    def packed_weights(self, dtype: torch.dtype = torch.bfloat16) -> MatcherWeights:
        """The weights as `kernels.matcher.match_products` takes them, matrices in `dtype`, on this module's device.

        Raises:
            ValueError: a configuration that the kernel does not have: an ablation, hidden_dim above embed_dim, or an
                embed_dim that is not a power of two from 16 to 128.
        """
        config = self.config
        unsupported = ValueError(
            f"no packed weights for {config}: expected f_edge an MLP of at most embed_dim, and cross-attention"
        )
        if config.hidden_dim > config.embed_dim or not isinstance(self.last_unit.edge, EdgeMLP):
            raise unsupported
        packed = []
        for unit in self.units:
            assert isinstance(unit, MatcherUnit)
            cross = unit.cross_unit
            if cross is None or not isinstance(cross.edge, EdgeMLP):
                raise unsupported
            packed.append(_packed_unit(unit.self_unit, cross.edge, _packed_update(cross.update, cross.value)))
        packed.append(_packed_unit(self.last_unit.self_unit, self.last_unit.edge, None))
        return MatcherWeights.pack(packed, dtype)


def edge_function(config: MatcherConfig) -> EdgeMLP | EdgeDotProduct:
    """f_edge of the configuration."""
    function = EdgeMLP if config.edge == "mlp" else EdgeDotProduct
    return function(config.embed_dim, config.hidden_dim)


def without_absent(scores: Tensor, present: Tensor) -> Tensor:
    """Scores [B, n, m] with the lowest finite number where key j of `present` [B, m] is absent.

    Finite, so that a row without any key is uniform instead of NaN.
    """
    return scores.masked_fill(~present[:, None, :], torch.finfo(scores.dtype).min)


def masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the keys j that are present: [B, n, m], [B, m] bool -> [B, n, m]."""
    return without_absent(scores, present).softmax(-1)


def _packed_unit(self_unit: SelfUnit, edge: EdgeMLP, cross_update: UpdateWeights | None) -> UnitWeights:
    """A unit with W_q W_k^T / sqrt(d) as one matrix, and f_edge's hidden layer filled up to d with zeros."""
    query, query_bias, key = (
        self_unit.query.weight.double(),
        self_unit.query.bias.double(),
        self_unit.key.weight.double(),
    )
    scale = math.sqrt(len(key))
    fill = (0, self_unit.query.in_features - edge.query.out_features)
    return UnitWeights(
        score=query.T @ key / scale,
        score_bias=query_bias @ key / scale,
        self_update=_packed_update(self_unit.update, self_unit.value),
        edge_query=nn.functional.pad(edge.query.weight.double().T, fill),
        edge_bias=nn.functional.pad(edge.query.bias.double(), fill),
        edge_key=nn.functional.pad(edge.key.weight.double().T, fill),
        edge_weight=nn.functional.pad(edge.output.weight.double()[0], fill),
        cross_update=cross_update,
    )


def _packed_update(update: ResidualUpdate, value: nn.Linear) -> UpdateWeights:
    """An update that takes the mean of tokens for the mean of values: their matrix goes into its first layer."""
    of_tokens, of_message = update.input.weight.double().T.chunk(2)
    return UpdateWeights(
        input=torch.cat([of_tokens, value.weight.double().T @ of_message]),
        input_bias=update.input.bias.double() + value.bias.double() @ of_message,
        output=update.output.weight.double().T,
        output_bias=update.output.bias.double(),
    )
