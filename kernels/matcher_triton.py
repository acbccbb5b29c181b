"""The matcher in the Triton language: one launch for a ragged batch, whole products packed into tiles of tokens.

A tile holds the images of consecutive products, then their labels, as one sequence: all weights are shared, so a layer
is one product of matrices, and attention masks keep products and sides apart. Notable: weights stream in one order,
the next matrix under way while the tensor cores work on this one; f_edge is computed for the pairs that exist and no
others, from a scratch that stays in L1; programs walk over several tiles, so that the scratch of all stays in L2.
Tokens that are not finite poison the attention of their own product and are zero to all others.
"""

from __future__ import annotations

# mypy: allow-untyped-defs
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.matcher import MatcherWeights
from kernels.ragged import RaggedProducts

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""Stands for the score of a token outside the attention: finite, so that a row without any key is no NaN."""
BEYOND = tl.constexpr(2147483647)
UNIT_MATRICES = tl.constexpr(15)
UNIT_VECTORS = tl.constexpr(9)


@triton.jit
def _matrix(matrices, index, D: tl.constexpr):
    """Matrix `index` of the stream, as the bits that it has in memory.

    Loaded as integers and made numbers where it is used: the compiler would otherwise move the wait for the load to the
    load, before the product that is to hide it.
    """
    return tl.load(matrices + index * D * D + tl.arange(0, D)[:, None] * D + tl.arange(0, D)[None, :])


@triton.jit
def _vector(vectors, index, D: tl.constexpr):
    return tl.load(vectors + index * D + tl.arange(0, D))[None, :]


@triton.jit
def _product(left, bits, DTYPE: tl.constexpr):
    return tl.dot(left.to(DTYPE), bits.to(DTYPE, bitcast=True), input_precision="ieee")


@triton.jit
def _relu(value):
    """NaN stays NaN."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _keys(x, DTYPE: tl.constexpr):
    """Tokens to attend to, and 0 for each, or NaN for one that is not finite and whose place a zero takes."""
    poison = tl.sum(x * 0.0, axis=1)
    return tl.where((poison == 0.0)[:, None], x, 0.0).to(DTYPE), poison


@triton.jit
def _mean(scores, keys, DTYPE: tl.constexpr):
    """softmax(scores) keys."""
    exponentials = tl.exp2((scores - tl.max(scores, axis=1)[:, None]) * LOG2E)
    weights = exponentials / tl.sum(exponentials, axis=1)[:, None]
    return tl.dot(weights.to(DTYPE), keys, input_precision="ieee")


@triton.jit
def _update(x, mean, matrix, matrices, next_matrix, vectors, vector, D: tl.constexpr, DTYPE: tl.constexpr):
    """x + relu([x, mean] input + bias) output + bias, by halves of the hidden layer.

    Takes the first matrix as `matrix`, loads the others from `next_matrix` on, and returns the one behind its own six.
    """
    left, right = x.to(DTYPE), mean.to(DTYPE)
    x += _vector(vectors, vector + 2, D)
    for half in tl.static_range(2):
        following = _matrix(matrices, next_matrix + 3 * half, D)
        hidden = _product(left, matrix, DTYPE)
        matrix = _matrix(matrices, next_matrix + 3 * half + 1, D)
        hidden += _product(right, following, DTYPE)
        hidden = _relu(hidden + _vector(vectors, vector + half, D))
        following = _matrix(matrices, next_matrix + 3 * half + 2, D)
        x += _product(hidden, matrix, DTYPE)
        matrix = following
    return x, matrix


@triton.jit
def _member(ends, index, first, count, PRODUCTS: tl.constexpr):
    """Which of the tile's products holds each index of a packed tensor, by the products' ends."""
    product = tl.arange(0, PRODUCTS)
    end = tl.load(ends + first + 1 + product, mask=product < count, other=BEYOND)
    return tl.sum((index[:, None] >= end[None, :]).to(tl.int32), axis=1)


@triton.jit
def matcher_kernel(
    image_tokens,
    label_tokens,
    logits,
    matrices,
    vectors,
    cu_images,
    cu_labels,
    cu_pairs,
    tile_products,
    edge_scratch,
    score_scratch,
    pair_scratch,
    tiles,
    image_stride,
    label_stride,
    UNITS: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One program walks over tiles: products tile_products[2 t] to tile_products[2 t + 1] of tile t."""
    program = tl.program_id(0).to(tl.int64)
    edge_scratch += program * 2 * TILE * D
    score_scratch += program * TILE * TILE
    pair_scratch += program * (TILE * TILE // 4)
    MATRICES: tl.constexpr = UNIT_MATRICES * UNITS - 6
    PRODUCTS: tl.constexpr = TILE // 2
    token = tl.arange(0, TILE)
    column = tl.arange(0, D)
    matrix = _matrix(matrices, 0, D)

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tl.load(tile_products + 2 * tile)
        count = tl.load(tile_products + 2 * tile + 1) - first
        first_image = tl.load(cu_images + first)
        images = tl.load(cu_images + first + count) - first_image
        first_label = tl.load(cu_labels + first)
        labels = tl.load(cu_labels + first + count) - first_label
        first_pair = tl.load(cu_pairs + first)
        pairs = tl.load(cu_pairs + first + count) - first_pair

        # The pairs' tokens, found once for all units. Every thread is done with the tile before.
        tl.debug_barrier()
        for start in range(0, pairs, 2 * TILE):
            pair = start + tl.arange(0, 2 * TILE)
            product = first + _member(cu_pairs, first_pair + pair, first, count, PRODUCTS)
            exists = pair < pairs
            own_images = tl.load(cu_images + product, mask=exists, other=0)
            own_labels = tl.load(cu_labels + product, mask=exists, other=0)
            width = tl.load(cu_labels + product + 1, mask=exists, other=1) - own_labels
            place = first_pair + pair - tl.load(cu_pairs + product, mask=exists, other=0)
            image = own_images - first_image + place // width
            label = images + own_labels - first_label + place % width
            tl.store(pair_scratch + pair, image | (label << 16), mask=exists)

        is_image = token < images
        is_label = (token >= images) & (token < images + labels)
        image_row = first_image + token
        label_row = first_label + token - images
        # A product's images and its labels are groups 2 p and 2 p + 1; places without a token are a group of their own.
        group = 2 * _member(cu_images, image_row, first, count, PRODUCTS)
        group = tl.where(is_image, group, 2 * _member(cu_labels, label_row, first, count, PRODUCTS) + 1)
        group = tl.where(is_image | is_label, group, -2)
        own = group[:, None] == group[None, :]
        opposite = group[:, None] == (group ^ 1)[None, :]
        from_images = image_tokens + image_row.to(tl.int64)[:, None] * image_stride + column[None, :]
        from_labels = label_tokens + label_row.to(tl.int64)[:, None] * label_stride + column[None, :]
        x = tl.load(from_images, mask=is_image[:, None], other=0.0).to(tl.float32)
        x += tl.load(from_labels, mask=is_label[:, None], other=0.0).to(tl.float32)

        for unit in range(UNITS):
            first_matrix = UNIT_MATRICES * unit
            vector = UNIT_VECTORS * unit
            # Self-attention: scores (x M + c) x^T within a product's images and within its labels.
            following = _matrix(matrices, first_matrix + 1, D)
            keys, poison = _keys(x, DTYPE)
            query = _product(x, matrix, DTYPE) + _vector(vectors, vector, D)
            scores = tl.dot(query.to(DTYPE), tl.trans(keys), input_precision="ieee")
            mean = _mean(tl.where(own, scores + poison[None, :], LOWEST), keys, DTYPE)
            x, matrix = _update(x, mean, following, matrices, first_matrix + 2, vectors, vector + 1, D, DTYPE)

            # f_edge: its first layer a token at a time, then a pair at a time.
            following = _matrix(matrices, first_matrix + 8, D)
            query = _product(x, matrix, DTYPE) + _vector(vectors, vector + 4, D)
            tl.store(edge_scratch + token[:, None] * D + column[None, :], query.to(DTYPE))
            after = first_matrix + 9
            matrix = _matrix(matrices, tl.where(after == MATRICES, 0, after), D)
            key = _product(x, following, DTYPE)
            tl.store(edge_scratch + (TILE + token[:, None]) * D + column[None, :], key.to(DTYPE))
            tl.debug_barrier()
            edge_weight = _vector(vectors, vector + 5, D)
            for start in range(0, pairs, PAIRS):
                pair = start + tl.arange(0, PAIRS)
                exists = pair < pairs
                both = tl.load(pair_scratch + pair, mask=exists, other=0)
                image, label = both & 0xFFFF, both >> 16
                image_at = edge_scratch + image[:, None] * D + column[None, :]
                label_at = edge_scratch + label[:, None] * D + column[None, :]
                over_labels = tl.load(image_at).to(tl.float32) + tl.load(label_at + TILE * D).to(tl.float32)
                over_labels = tl.sum(_relu(over_labels) * edge_weight, axis=1)
                if unit == UNITS - 1:
                    tl.store(logits + first_pair + pair, over_labels, mask=exists)
                else:
                    over_images = tl.load(label_at).to(tl.float32) + tl.load(image_at + TILE * D).to(tl.float32)
                    over_images = tl.sum(_relu(over_images) * edge_weight, axis=1)
                    tl.store(score_scratch + image * TILE + label, over_labels, mask=exists)
                    tl.store(score_scratch + label * TILE + image, over_images, mask=exists)

            if unit < UNITS - 1:
                tl.debug_barrier()
                keys, poison = _keys(x, DTYPE)
                scores = tl.load(score_scratch + token[:, None] * TILE + token[None, :], mask=opposite, other=LOWEST)
                mean = _mean(tl.where(opposite, scores + poison[None, :], LOWEST), keys, DTYPE)
                x, matrix = _update(x, mean, matrix, matrices, first_matrix + 10, vectors, vector + 6, D, DTYPE)


@dataclass(frozen=True)
class TilePlan:
    """How products share tiles.

    tile: tokens a tile has. tiles: (first product, one behind the last) of each. long: products that fit no tile.
    """

    tile: int
    tiles: list[tuple[int, int]]
    long: list[int]


TILES = (32, 64, 128)
PROGRAMS_A_PROCESSOR = 2


def fill_tiles(products: RaggedProducts, tile: int) -> TilePlan:
    """Consecutive products into tiles, as many each as fit (and at most tile / 2, some may be empty)."""
    ends = (products.cu_images + products.cu_labels).tolist()
    tiles: list[tuple[int, int]] = []
    long: list[int] = []
    product = 0
    while product < len(products):
        end = bisect_right(ends, ends[product] + tile, product + 1, min(product + tile // 2, len(products)) + 1) - 1
        if end == product:
            long.append(product)
            product += 1
            continue
        tiles.append((product, end))
        product = end
    return TilePlan(tile, tiles, long)


def plan_tiles(products: RaggedProducts, processors: int) -> TilePlan:
    """The largest tile that keeps all processors busy, and the smallest that holds every product if none does.

    Weights stream once a tile: large tiles need less of that, small ones are more in number.
    """
    longest = int((products.cu_images + products.cu_labels).diff().max()) if len(products) else 0
    fitting = [tile for tile in TILES if tile >= longest] or [TILES[-1]]
    for tile in reversed(fitting[1:]):
        plan = fill_tiles(products, tile)
        if len(plan.tiles) >= processors:
            return plan
    return fill_tiles(products, fitting[0])


def matcher_constants(units: int, width: int, tile: int, dtype: torch.dtype) -> dict[str, int | tl.dtype]:
    """Constants and warps of `matcher_kernel`."""
    return {
        "UNITS": units,
        "D": width,
        "TILE": tile,
        "PAIRS": 32,
        "DTYPE": {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype],
        "num_warps": 8,
        # Loads are put ahead by hand; buffers for several stages would not fit.
        "num_stages": 1,
    }


def upload(products: RaggedProducts, plan: TilePlan, device: torch.device) -> list[Tensor]:
    """cu_images, cu_labels, cu_pairs and the tiles' products, int32 on the device, in one copy.

    Raises:
        ValueError: more pairs than int32 can count.
    """
    if products.pairs > torch.iinfo(torch.int32).max:
        raise ValueError(f"pairs of images and labels: expected fewer than 2**31 in a batch, got {products.pairs}")
    bounds = torch.tensor(plan.tiles, dtype=torch.int32).flatten()
    parts = [products.cu_images.int(), products.cu_labels.int(), products.cu_pairs.int(), bounds]
    packed = torch.cat(parts)
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    return list(packed.split([len(part) for part in parts]))


def scratch(programs: int, tile: int, width: int, like: Tensor) -> list[Tensor]:
    """What programs pass from one layout to another: tokens' hidden layer of f_edge, scores, pairs."""
    return [
        like.new_empty(programs * 2 * tile * width),
        like.new_empty(programs * tile * tile, dtype=torch.float32),
        like.new_empty(programs * tile * tile // 4, dtype=torch.int32),
    ]


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def match_tiles(
    weights: MatcherWeights,
    image_tokens: Tensor,
    label_tokens: Tensor,
    products: RaggedProducts,
    logits: Tensor,
    plan: TilePlan | None = None,
) -> list[int]:
    """Write the packed logits of all products that fit a tile; return those that do not."""
    plan = plan or plan_tiles(products, _processors(logits.device))
    if plan.tiles:
        launch(weights, image_tokens, label_tokens, upload(products, plan, logits.device), plan, logits)
    return plan.long


def launch(
    weights: MatcherWeights,
    image_tokens: Tensor,
    label_tokens: Tensor,
    places: list[Tensor],
    plan: TilePlan,
    logits: Tensor,
) -> None:
    """The one launch of a batch whose `places` are on the device; a CUDA graph may capture it."""
    matrices = weights.matrices
    units, tiles = (len(matrices) + 6) // UNIT_MATRICES.value, len(plan.tiles)
    programs = min(tiles, PROGRAMS_A_PROCESSOR * _processors(logits.device))
    image_tokens, label_tokens = _unit_stride(image_tokens), _unit_stride(label_tokens)
    bits = torch.int16 if matrices.dtype == torch.bfloat16 else torch.int32
    with torch.cuda.device_of(logits):
        matcher_kernel[(programs,)](
            image_tokens,
            label_tokens,
            logits,
            matrices.view(bits),
            weights.vectors,
            *places,
            *scratch(programs, plan.tile, weights.width, matrices),
            tiles,
            image_tokens.stride(0),
            label_tokens.stride(0),
            **matcher_constants(units, weights.width, plan.tile, matrices.dtype),
        )


def _unit_stride(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(1) == 1 else tokens.contiguous()
