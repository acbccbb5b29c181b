"""The matcher in the Triton language: one launch for a ragged batch, whole products packed into tiles of tokens.

A tile holds the images of consecutive products, then their labels, as one sequence: all weights are shared, so a layer
is one product of matrices, and attention masks keep products and sides apart. Notable: weights stream from L2 in
blocks, the next one under way while the tensor cores work on this one; f_edge is computed for the pairs that exist and
no others; between layers the tokens lie in a scratch, and programs walk over several tiles, so that the scratch of all
stays in L2. Tokens that are not finite poison the attention of their own product and are zero to all others.
"""

from __future__ import annotations

# mypy: allow-untyped-defs
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.matcher_weights import MatcherWeights
from kernels.ragged import RaggedProducts

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""Stands for the score of a token outside the attention: finite, so that a row without any key is no NaN."""
BEYOND = tl.constexpr(2147483647)


# Between layers the tokens lie in a scratch of the program, in float32 and as the tensor cores take them: a layer's
# registers are its own. Every thread may read what another wrote, so a barrier follows each layer's writes.


@triton.jit
def _square(base, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Addresses of a [ROWS, COLUMNS] block."""
    return base + tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _vector(base, D: tl.constexpr):
    return tl.load(base + tl.arange(0, D))[None, :]


@triton.jit
def _relu(value):
    """NaN stays NaN."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _projected(
    rounded_at,
    matrix,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x matrix, float32 [TILE, D]."""
    result = tl.zeros([TILE, D], dtype=tl.float32)
    for block in tl.range(0, D, BLOCK, num_stages=STAGES):
        left = tl.load(_square(rounded_at + block, D, TILE, BLOCK))
        right = tl.load(_square(matrix + block * D, D, BLOCK, D))
        result = tl.dot(left, right, result, input_precision="ieee")
    return result


@triton.jit
def _own_scores(
    rounded_at,
    score_at,
    matrices,
    vectors,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """(x score + score_bias) x^T to the scratch of scores."""
    query = _projected(rounded_at, matrices, D, TILE, BLOCK, STAGES) + _vector(vectors, D)
    tokens = tl.load(_square(rounded_at, D, TILE, D))
    scores = tl.dot(query.to(DTYPE), tl.trans(tokens), input_precision="ieee")
    tl.store(_square(score_at, TILE, TILE, TILE), scores)
    tl.debug_barrier()


@triton.jit
def _mean(tokens, scores, attended, DTYPE: tl.constexpr):
    """Mean of the tokens attended to, weighted by softmax(scores).

    A token that is not finite is zero to all and makes the scores of those that attend to it NaN.
    """
    poison = tl.sum(tokens.to(tl.float32) * 0.0, axis=1)
    keys = tl.where((poison == 0.0)[:, None], tokens, 0.0).to(DTYPE)
    scores = tl.where(attended, scores + poison[None, :], LOWEST)
    exponentials = tl.exp2((scores - tl.max(scores, axis=1)[:, None]) * LOG2E)
    weights = exponentials / tl.sum(exponentials, axis=1)[:, None]
    return tl.dot(weights.to(DTYPE), keys, input_precision="ieee").to(DTYPE)


@triton.jit
def _update(
    exact_at,
    rounded_at,
    mean_at,
    matrices,
    vectors,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Write x + relu([x, mean] input + input_bias) output + output_bias to the scratch.

    The hidden layer exists BLOCK channels at a time.
    """
    output = matrices + 4 * D * D
    tokens, mean = tl.load(_square(rounded_at, D, TILE, D)), tl.load(_square(mean_at, D, TILE, D))
    change = tl.zeros([TILE, D], dtype=tl.float32) + _vector(vectors + 2 * D, D)
    for block in tl.range(0, 2 * D, BLOCK, num_stages=STAGES):
        of_tokens = tl.load(_square(matrices + block, 2 * D, D, BLOCK))
        of_mean = tl.load(_square(matrices + 2 * D * D + block, 2 * D, D, BLOCK))
        out = tl.load(_square(output + block * D, D, BLOCK, D))
        hidden = tl.dot(tokens, of_tokens, input_precision="ieee")
        hidden = tl.dot(mean, of_mean, hidden, input_precision="ieee")
        hidden = _relu(hidden + _vector(vectors + block, BLOCK))
        change = tl.dot(hidden.to(DTYPE), out, change, input_precision="ieee")
    at = _square(0, D, TILE, D)
    x = tl.load(exact_at + at) + change
    tl.store(exact_at + at, x)
    tl.store(rounded_at + at, x.to(DTYPE))
    tl.debug_barrier()


@triton.jit
def _edges(
    rounded_at,
    edge_at,
    score_at,
    pair_at,
    logits,
    pairs,
    is_last,
    matrices,
    vectors,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PAIRS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """f_edge both ways of every pair to the scratch of scores; in the last unit images over labels to the logits.

    The first layer is computed a token at a time, to the scratch; there each pair finds its two tokens.
    """
    query = _projected(rounded_at, matrices, D, TILE, BLOCK, STAGES) + _vector(vectors, D)
    tl.store(_square(edge_at, D, TILE, D), query.to(DTYPE))
    key = _projected(rounded_at, matrices + D * D, D, TILE, BLOCK, STAGES)
    tl.store(_square(edge_at + TILE * D, D, TILE, D), key.to(DTYPE))
    tl.debug_barrier()
    weight = _vector(vectors + D, D)
    column = tl.arange(0, D)[None, :]
    for start in range(0, pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        exists = pair < pairs
        both = tl.load(pair_at + pair, mask=exists, other=0)
        image, label = both & 0xFFFF, both >> 16
        of_image = edge_at + image[:, None] * D + column
        of_label = edge_at + label[:, None] * D + column
        hidden = tl.load(of_image).to(tl.float32) + tl.load(of_label + TILE * D).to(tl.float32)
        over_labels = tl.sum(_relu(hidden) * weight, axis=1)
        if is_last:
            tl.store(logits + pair, over_labels, mask=exists)
        else:
            hidden = tl.load(of_label).to(tl.float32) + tl.load(of_image + TILE * D).to(tl.float32)
            over_images = tl.sum(_relu(hidden) * weight, axis=1)
            tl.store(score_at + image * TILE + label, over_labels, mask=exists)
            tl.store(score_at + label * TILE + image, over_images, mask=exists)
    tl.debug_barrier()


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
    exact_scratch,
    rounded_scratch,
    score_scratch,
    index_scratch,
    tiles,
    image_stride,
    label_stride,
    UNITS: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PAIRS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One program walks over tiles: products tile_products[2 t] to tile_products[2 t + 1] of tile t."""
    program = tl.program_id(0).to(tl.int64)
    exact_at = exact_scratch + program * (TILE * D)
    rounded_at = rounded_scratch + program * (3 * TILE * D)
    edge_at = rounded_at + TILE * D
    mean_at = edge_at  # f_edge's first layer has been read when means are written
    score_at = score_scratch + program * (TILE * TILE)
    group_at = index_scratch + program * (TILE + TILE * TILE // 4)
    pair_at = group_at + TILE
    PRODUCTS: tl.constexpr = TILE // 2
    token = tl.arange(0, TILE)

    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        first = tl.load(tile_products + 2 * tile)
        count = tl.load(tile_products + 2 * tile + 1) - first
        first_image = tl.load(cu_images + first)
        images = tl.load(cu_images + first + count) - first_image
        first_label = tl.load(cu_labels + first)
        labels = tl.load(cu_labels + first + count) - first_label
        first_pair = tl.load(cu_pairs + first)
        pairs = tl.load(cu_pairs + first + count) - first_pair

        # A product's images and its labels are groups 2 p and 2 p + 1; places without a token are a group of their own.
        is_image = token < images
        is_label = (token >= images) & (token < images + labels)
        image_row, label_row = first_image + token, first_label + token - images
        of_image = 2 * _member(cu_images, image_row, first, count, PRODUCTS)
        of_label = 2 * _member(cu_labels, label_row, first, count, PRODUCTS) + 1
        tl.store(group_at + token, tl.where(is_image, of_image, tl.where(is_label, of_label, -2)))

        column = tl.arange(0, D)[None, :]
        from_images = image_tokens + image_row.to(tl.int64)[:, None] * image_stride + column
        from_labels = label_tokens + label_row.to(tl.int64)[:, None] * label_stride + column
        x = tl.load(from_images, mask=is_image[:, None], other=0.0).to(tl.float32)
        x += tl.load(from_labels, mask=is_label[:, None], other=0.0).to(tl.float32)
        tl.store(_square(exact_at, D, TILE, D), x)
        tl.store(_square(rounded_at, D, TILE, D), x.to(DTYPE))

        # The tokens of every pair, found once for all units.
        for start in range(0, pairs, 2 * TILE):
            pair = start + tl.arange(0, 2 * TILE)
            exists = pair < pairs
            product = first + _member(cu_pairs, first_pair + pair, first, count, PRODUCTS)
            own_images = tl.load(cu_images + product, mask=exists, other=0)
            own_labels = tl.load(cu_labels + product, mask=exists, other=0)
            width = tl.load(cu_labels + product + 1, mask=exists, other=1) - own_labels
            place = first_pair + pair - tl.load(cu_pairs + product, mask=exists, other=0)
            image = own_images - first_image + place // width
            label = images + own_labels - first_label + place % width
            tl.store(pair_at + pair, image | (label << 16), mask=exists)
        tl.debug_barrier()

        # Two layers a unit: attention within a side, then across.
        for layer in tl.range(0, 2 * UNITS, disable_licm=True):
            across = layer % 2
            is_last = layer == 2 * UNITS - 1
            m = matrices + (15 * (layer // 2) + 7 * across) * D * D
            v = vectors + (9 * (layer // 2) + 4 * across) * D
            if across == 0:
                _own_scores(rounded_at, score_at, m, v, D, TILE, BLOCK, STAGES, DTYPE)
            else:
                out = logits + first_pair
                _edges(
                    rounded_at,
                    edge_at,
                    score_at,
                    pair_at,
                    out,
                    pairs,
                    is_last,
                    m,
                    v,
                    D,
                    TILE,
                    BLOCK,
                    STAGES,
                    PAIRS,
                    DTYPE,
                )
            if not is_last:
                group = tl.load(group_at + tl.arange(0, TILE))
                attended = group[:, None] == (group ^ across)[None, :]
                # Read as a whole, in wide loads: what was never written is not attended to.
                scores = tl.load(_square(score_at, TILE, TILE, TILE))
                tokens = tl.load(_square(rounded_at, D, TILE, D))
                tl.store(_square(mean_at, D, TILE, D), _mean(tokens, scores, attended, DTYPE))
                tl.debug_barrier()
                m, v = m + (1 + across) * D * D, v + (1 + across) * D
                _update(exact_at, rounded_at, mean_at, m, v, D, TILE, BLOCK, STAGES, DTYPE)


@dataclass(frozen=True)
class TilePlan:
    """How products share tiles.

    tile: tokens a tile has. tiles: (first product, one behind the last) of each. long: products that fit no tile.
    """

    tile: int
    tiles: list[tuple[int, int]]
    long: list[int]


# A tile of 64 spills on sm_90 (24 bytes, Triton 3.9), whatever the sizes of its blocks; what it would save is unknown.
TILES = (32, 128)
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


def matcher_constants(units: int, width: int, tile: int, dtype: torch.dtype, shared_bytes: int) -> dict[str, Any]:
    """Constants and options of `matcher_kernel` for a GPU that gives a block so much shared memory."""
    return {
        "UNITS": units,
        "D": width,
        "TILE": tile,
        "BLOCK": min(64 if shared_bytes >= 2**17 + 2**12 else 32, width),
        "STAGES": 2,
        "PAIRS": 32,
        "DTYPE": {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype],
        "num_warps": 8 if tile == 128 else 4,
        # For the loops that do not say; buffers for several stages of everything would not fit.
        "num_stages": 1,
        "enable_fp_fusion": True,
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
    """What programs keep between layers: tokens exact; tokens rounded, f_edge's first layer; scores; indices."""
    return [
        like.new_empty(programs * tile * width, dtype=torch.float32),
        like.new_empty(programs * 3 * tile * width),
        like.new_empty(programs * tile * tile, dtype=torch.float32),
        like.new_empty(programs * (tile + tile * tile // 4), dtype=torch.int32),
    ]


@lru_cache
def _device(device: torch.device) -> tuple[int, int]:
    """Processors, and shared memory that a block may have; of the interpreter, one and as much as one likes."""
    if device.type != "cuda":
        return 1, 2**30
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]


def match_tiles(
    weights: MatcherWeights,
    image_tokens: Tensor,
    label_tokens: Tensor,
    products: RaggedProducts,
    logits: Tensor,
    plan: TilePlan | None = None,
) -> list[int]:
    """Write the packed logits of all products that fit a tile; return those that do not."""
    plan = plan or plan_tiles(products, _device(logits.device)[0])
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
    tiles = len(plan.tiles)
    processors, shared_bytes = _device(logits.device)
    programs = min(tiles, PROGRAMS_A_PROCESSOR * processors)
    image_tokens, label_tokens = _unit_stride(image_tokens), _unit_stride(label_tokens)
    with torch.cuda.device_of(logits):
        matcher_kernel[(programs,)](
            image_tokens,
            label_tokens,
            logits,
            matrices,
            weights.vectors,
            *places,
            *scratch(programs, plan.tile, weights.width, matrices),
            tiles,
            image_tokens.stride(0),
            label_tokens.stride(0),
            **matcher_constants(weights.num_units, weights.width, plan.tile, matrices.dtype, shared_bytes),
        )


def _unit_stride(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(1) == 1 else tokens.contiguous()
