"""Focal + label-neighbour KL in the Triton language: a row of logits is read once and its gradient written once.

Notable: a row is a tile [n, lanes] of 16-byte accesses a thread, cut into powers of two (8 + 1 tiles of 512, not 16),
so that maxima and sums stay inside a thread until one reduction over the lanes; exponentials wait in registers for the
gradient; the K+1 target entries are gathered, and corrected in the gradient after a barrier. Rows that do not begin
at 16 bytes are read in whole vectors too, their ragged ends (at most two vectors) element by element. Rows too long
for registers are read twice, the second time backwards out of L2. Online softmax: Milakov & Gimelshein, 2018.
"""

from __future__ import annotations

# mypy: allow-untyped-defs
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.label_kl_objective import Objective

STATISTICS = 5
"""Numbers a row that the recomputing linear entry keeps between its forward and backward calls."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1.0e30)
"""Stands for the maximum of nothing: finite, so that a difference of two of them is 0 and not NaN."""


# Row arithmetic, in powers of two: an exponent is logit * log2(e) - shift with one rounding (tl.fma), where the shift,
# maximum * log2(e) rounded, is the same number wherever it is used: its rounding error cancels between the exponentials
# and their sum. Kernels are compiled without implicit fusing, which would round it in one place and not in another.
# What is handed on together is a tuple: a target (label, whether it is to be followed, ids, which of them are to be,
# weights, mass, logit of the label, logits of the ids) and a softmax (maximum, total, soft scale, soft total).


@triton.jit
def _exponential(x, maximum, scale):
    return tl.exp2(tl.fma(x, scale, -maximum * scale))


@triton.jit
def _focal(exponent, total, gamma):
    """Focal loss of a row, its slope, and 1 - p, from the label's exponent and the sum of all exponentials.

    -log p is log1p(rest / label) for a likely label and a difference of logarithms for an unlikely one, so that
    neither end cancels; the slope's (1-p)^(gamma-1) * log p is written without its pole at p = 1.
    """
    of_label = tl.exp2(exponent)
    inverse = 1.0 / total
    rest = total - of_label
    rest = tl.where(rest < 0, 0.0, rest)
    p = of_label * inverse
    complement = rest * inverse
    odds = rest * tl.exp2(-exponent)
    shifted = 1.0 + odds
    # What 1 + odds lost in rounding comes back to first order; 1 / (1 + odds) is p.
    likely = tl.log(shifted) + (odds - (shifted - 1.0)) * p
    unlikely = (tl.log2(total) - exponent) * LN2
    surprise = tl.where(rest < of_label, likely, unlikely)
    power = tl.where(gamma == 0.0, 1.0, tl.exp2(gamma * tl.log2(complement)))
    bend = tl.where(complement > 0, surprise / complement, 1.0)
    slope = power * (1.0 + tl.where(p > 0, gamma * p * bend, 0.0))
    return power * surprise, slope, complement


@triton.jit
def _entries(
    label,
    neighbour_ids,
    neighbour_weights,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
):
    """Ids of a class's target, their weights, and the mass on each id when equal ids are put together.

    An id out of range is never followed: its weight becomes NaN, and with it the row's loss and gradient.
    """
    entry = tl.arange(0, ENTRIES_PADDED)
    at = label.to(tl.int64) * ENTRIES
    ids = tl.load(neighbour_ids + at + entry, mask=entry < ENTRIES, other=-1).to(tl.int32)
    weights = tl.load(neighbour_weights + at + entry, mask=entry < ENTRIES, other=0.0)
    inside = (ids >= 0) & (ids < CLASSES)
    weights = tl.where((entry < ENTRIES) & (inside == 0), float("nan"), weights)
    mass = tl.zeros([ENTRIES_PADDED], dtype=tl.float32)
    CHUNK: tl.constexpr = ENTRIES_PADDED if ENTRIES_PADDED < 32 else 32
    for chunk in tl.static_range(0, ENTRIES_PADDED, CHUNK):
        other = chunk + tl.arange(0, CHUNK)
        other_ids = tl.load(neighbour_ids + at + other, mask=other < ENTRIES, other=-1).to(tl.int32)
        other_weights = tl.load(neighbour_weights + at + other, mask=other < ENTRIES, other=0.0)
        mass += tl.sum(tl.where(other_ids[:, None] == ids[None, :], other_weights[:, None], 0.0), axis=0)
    return ids, inside, weights, mass


@triton.jit
def _target(
    row,
    program,
    labels,
    neighbour_ids,
    neighbour_weights,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
):
    """A row's label as it is given, and its target."""
    given = tl.load(labels + program).to(tl.int64)
    known = (given >= 0) & (given < CLASSES)
    label = tl.where(known, given, 0)
    ids, inside, weights, mass = _entries(label, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED)
    x_label = tl.load(row + label).to(tl.float32)
    x_entries = tl.load(row + ids, mask=inside, other=0.0).to(tl.float32)
    return given, (label, known, ids, inside, weights, mass, x_label, x_entries)


@triton.jit
def _target_in_block(
    row,
    program,
    first,
    width,
    labels,
    neighbour_ids,
    neighbour_weights,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
):
    """The same in a block of columns: label and ids count from its first, those outside are not to be followed."""
    given = tl.load(labels + program).to(tl.int64)
    known = (given >= 0) & (given < CLASSES)
    label = tl.where(known, given, 0)
    ids, _, weights, mass = _entries(label, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED)
    here = known & (label >= first) & (label < first + width)
    inside = (ids >= first) & (ids < first + width)
    x_label = tl.load(row + (label - first), mask=here, other=0.0).to(tl.float32)
    x_entries = tl.load(row + (ids - first), mask=inside, other=0.0).to(tl.float32)
    return given, (label - first, here, ids - first, inside, weights, mass, x_label, x_entries)


@triton.jit
def _divergence(weights, mass, exponents, total):
    """KL(target || softmax) = sum of w * (log mass - log q) over the entries that have weight."""
    log_q = (exponents - tl.log2(total)) * LN2
    return tl.sum(tl.where(weights != 0.0, weights * (tl.log(mass) - log_q), 0.0), axis=0)


@triton.jit
def _row_loss(target, softmax, class_weight, gamma, kl_weight, HAS_CLASS_WEIGHT: tl.constexpr):
    """Loss, slope of the focal term and 1 - p; NaN where a label or an id is out of range."""
    label, known, _, _, weights, mass, x_label, x_entries = target
    maximum, total, soft_scale, soft_total = softmax
    focal, slope, complement = _focal(tl.fma(x_label, LOG2E, -maximum * LOG2E), total, gamma)
    if HAS_CLASS_WEIGHT:
        alpha = tl.load(class_weight + label)
        focal *= alpha
        slope *= alpha
    divergence = _divergence(weights, mass, tl.fma(x_entries, soft_scale, -maximum * soft_scale), soft_total)
    row_loss = tl.where(known, focal + kl_weight * divergence, float("nan"))
    return row_loss, tl.where(known, slope, float("nan")), complement


@triton.jit
def _factors(target, softmax, slope, pull):
    """What the exponentials are multiplied with in the gradient, at temperature one and at the KL term's."""
    _, _, _, _, weights, _, _, _ = target
    _, total, _, soft_total = softmax
    return slope * (1.0 / total), pull * tl.sum(weights, axis=0) * (1.0 / soft_total)


@triton.jit
def _blend(x, softmax, hard, soft, HAS_TEMPERATURE: tl.constexpr):
    """Gradient of columns without target mass."""
    maximum, _, soft_scale, _ = softmax
    e = _exponential(x, maximum, LOG2E)
    if HAS_TEMPERATURE:
        return e * hard + _exponential(x, maximum, soft_scale) * soft
    return e * (hard + soft)


@triton.jit
def _correct(out, target, softmax, hard, soft, slope, complement, pull):
    """Write the gradient of the columns that have target mass: the entries, and the label from 1 - p."""
    label, known, ids, inside, weights, mass, x_label, x_entries = target
    maximum, _, soft_scale, _ = softmax
    e_entries = _exponential(x_entries, maximum, LOG2E)
    s_entries = _exponential(x_entries, maximum, soft_scale)
    of_entries = hard * e_entries + soft * s_entries - pull * mass
    tl.store(out + ids, of_entries.to(out.dtype.element_ty), mask=inside & (ids != label))
    mass_label = tl.sum(tl.where(ids == label, weights, 0.0), axis=0)
    of_label = soft * _exponential(x_label, maximum, soft_scale) - pull * mass_label - slope * complement
    tl.store(out + label, of_label.to(out.dtype.element_ty), mask=known)


@triton.jit
def _vectors(start, WIDTH: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a row's whole 16-byte vectors begin in the tensor, how many columns lie before them and in them."""
    if ALIGNED:
        return start, 0, WIDTH
    begin = (start + (VECTOR - 1)) // VECTOR * VECTOR
    before = tl.minimum(begin - start, WIDTH).to(tl.int32)
    return begin, before, (WIDTH - before) // VECTOR * VECTOR


@triton.jit
def _ragged_ends(before, length, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """Columns before and behind the whole vectors, and which of the 2 * VECTOR lanes hold one."""
    lane = tl.arange(0, 2 * VECTOR)
    column = tl.where(lane < VECTOR, lane, before + length + lane - VECTOR)
    return column, tl.where(lane < VECTOR, lane < before, column < WIDTH)


@triton.jit
def _tile(FROM: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr):
    return FROM + tl.arange(0, TILES)[:, None] * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def _read(
    row,
    before,
    length,
    FROM: tl.constexpr,
    TILES: tl.constexpr,
    LANES: tl.constexpr,
    CERTAIN: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Logits [TILES, LANES] from column FROM of the whole vectors on; -inf where the row has no class.

    The first CERTAIN columns exist in every row and need no mask. A mask at a multiple of VECTOR keeps accesses wide.
    """
    column = _tile(FROM, TILES, LANES)
    if FROM + TILES * LANES <= CERTAIN:
        logits = tl.load(row + column, eviction_policy="evict_first")
    else:
        logits = tl.load(row + column, mask=column < length, other=float("-inf"), eviction_policy="evict_first")
    logits = logits.to(tl.float32)
    if CLASSES < WIDTH and FROM + TILES * LANES + VECTOR > CLASSES:
        logits = tl.where(before + column < CLASSES, logits, float("-inf"))
    return logits


@triton.jit
def _write(row, gradient, length, FROM: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, CERTAIN: tl.constexpr):
    column = _tile(FROM, TILES, LANES)
    value = gradient.to(row.dtype.element_ty)
    if FROM + TILES * LANES <= CERTAIN:
        tl.store(row + column, value)
    else:
        tl.store(row + column, value, mask=column < length)


@triton.jit
def single_read_kernel(
    logits,
    gradient,
    loss,
    labels,
    neighbour_ids,
    neighbour_weights,
    class_weight,
    gamma,
    kl_weight,
    inverse_temperature,
    gradient_scale,
    ignore_index,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    GRADIENT_STRIDE: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    TILES_0: tl.constexpr,
    TILES_1: tl.constexpr,
    TILES_2: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):
    """One program a row: read it into registers, reduce twice, write the gradient from the exponentials held."""
    program = tl.program_id(0).to(tl.int64)
    start = program * STRIDE
    begin, before, length = _vectors(start, WIDTH, VECTOR, ALIGNED)
    row = logits + begin
    CERTAIN: tl.constexpr = WIDTH if ALIGNED else WIDTH - 2 * (VECTOR - 1)
    FROM_1: tl.constexpr = TILES_0 * LANES
    FROM_2: tl.constexpr = FROM_1 + TILES_1 * LANES

    # All loads of the row are under way before anything waits for the label.
    x_0 = _read(row, before, length, 0, TILES_0, LANES, CERTAIN, CLASSES, WIDTH, VECTOR)
    if TILES_1 > 0:
        x_1 = _read(row, before, length, FROM_1, TILES_1, LANES, CERTAIN, CLASSES, WIDTH, VECTOR)
    if TILES_2 > 0:
        x_2 = _read(row, before, length, FROM_2, TILES_2, LANES, CERTAIN, CLASSES, WIDTH, VECTOR)
    if not ALIGNED:
        end_column, at_end = _ragged_ends(before, length, WIDTH, VECTOR)
        end_class = at_end & (end_column < CLASSES)
        x_end = tl.load(logits + start + end_column, mask=end_class, other=float("-inf")).to(tl.float32)

    label, target = _target(
        logits + start, program, labels, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED
    )
    counted = label != ignore_index

    lane_maximum = tl.max(x_0, axis=0)
    if TILES_1 > 0:
        lane_maximum = tl.maximum(lane_maximum, tl.max(x_1, axis=0))
    if TILES_2 > 0:
        lane_maximum = tl.maximum(lane_maximum, tl.max(x_2, axis=0))
    maximum = tl.max(lane_maximum, axis=0)
    if not ALIGNED:
        maximum = tl.maximum(maximum, tl.max(x_end, axis=0))

    e_0 = _exponential(x_0, maximum, LOG2E)
    lane_sum = tl.sum(e_0, axis=0)
    if TILES_1 > 0:
        e_1 = _exponential(x_1, maximum, LOG2E)
        lane_sum += tl.sum(e_1, axis=0)
    if TILES_2 > 0:
        e_2 = _exponential(x_2, maximum, LOG2E)
        lane_sum += tl.sum(e_2, axis=0)
    total = tl.sum(lane_sum, axis=0)
    if not ALIGNED:
        e_end = _exponential(x_end, maximum, LOG2E)
        total += tl.sum(e_end, axis=0)

    soft_scale = LOG2E * inverse_temperature
    soft_total = total
    if HAS_TEMPERATURE:
        s_0 = _exponential(x_0, maximum, soft_scale)
        lane_sum = tl.sum(s_0, axis=0)
        if TILES_1 > 0:
            s_1 = _exponential(x_1, maximum, soft_scale)
            lane_sum += tl.sum(s_1, axis=0)
        if TILES_2 > 0:
            s_2 = _exponential(x_2, maximum, soft_scale)
            lane_sum += tl.sum(s_2, axis=0)
        soft_total = tl.sum(lane_sum, axis=0)
        if not ALIGNED:
            s_end = _exponential(x_end, maximum, soft_scale)
            soft_total += tl.sum(s_end, axis=0)

    softmax = (maximum, total, soft_scale, soft_total)
    row_loss, slope, complement = _row_loss(target, softmax, class_weight, gamma, kl_weight, HAS_CLASS_WEIGHT)
    tl.store(loss + program, tl.where(counted, row_loss, 0.0))

    if WITH_GRADIENT:
        slope *= gradient_scale
        pull = kl_weight * inverse_temperature * gradient_scale
        hard, soft = _factors(target, softmax, slope, pull)
        both = hard + soft
        out = gradient + program * GRADIENT_STRIDE
        out_begin = out
        if not ALIGNED:
            # The gradient's rows lie as the logits' do: the same columns make whole vectors.
            out_begin = gradient + (program * GRADIENT_STRIDE + (VECTOR - 1)) // VECTOR * VECTOR
        # In place, every thread's gathers come before any thread's writes.
        tl.debug_barrier()
        if counted:
            g_0 = e_0 * hard + s_0 * soft if HAS_TEMPERATURE else e_0 * both
            _write(out_begin, g_0, length, 0, TILES_0, LANES, CERTAIN)
            if TILES_1 > 0:
                g_1 = e_1 * hard + s_1 * soft if HAS_TEMPERATURE else e_1 * both
                _write(out_begin, g_1, length, FROM_1, TILES_1, LANES, CERTAIN)
            if TILES_2 > 0:
                g_2 = e_2 * hard + s_2 * soft if HAS_TEMPERATURE else e_2 * both
                _write(out_begin, g_2, length, FROM_2, TILES_2, LANES, CERTAIN)
            if not ALIGNED:
                g_end = e_end * hard + s_end * soft if HAS_TEMPERATURE else e_end * both
                tl.store(out + end_column, g_end.to(gradient.dtype.element_ty), mask=at_end)
            # The few columns with target mass are written once more, after everyone's first write.
            tl.debug_barrier()
            _correct(out, target, softmax, hard, soft, slope, complement, pull)
        else:
            _write(out_begin, tl.zeros([TILES_0, LANES], tl.float32), length, 0, TILES_0, LANES, CERTAIN)
            if TILES_1 > 0:
                _write(out_begin, tl.zeros([TILES_1, LANES], tl.float32), length, FROM_1, TILES_1, LANES, CERTAIN)
            if TILES_2 > 0:
                _write(out_begin, tl.zeros([TILES_2, LANES], tl.float32), length, FROM_2, TILES_2, LANES, CERTAIN)
            if not ALIGNED:
                nothing = tl.zeros([2 * VECTOR], gradient.dtype.element_ty)
                tl.store(out + end_column, nothing, mask=at_end)


@triton.jit
def _online(x, lane_maximum, lane_sum, scale):
    """Take a tile into each lane's own maximum and sum of exponentials: no thread talks to another."""
    new = tl.maximum(lane_maximum, tl.max(x, axis=0))
    lane_sum = lane_sum * tl.exp2(lane_maximum * scale - new * scale)
    return new, lane_sum + tl.sum(tl.exp2(tl.fma(x, scale, -(new * scale)[None, :])), axis=0)


@triton.jit
def two_read_kernel(
    logits,
    gradient,
    loss,
    labels,
    neighbour_ids,
    neighbour_weights,
    class_weight,
    gamma,
    kl_weight,
    inverse_temperature,
    gradient_scale,
    ignore_index,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    GRADIENT_STRIDE: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    TILES: tl.constexpr,
    LOOPS: tl.constexpr,
    KEPT_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):
    """One program a row that registers cannot hold: LOOPS blocks of TILES tiles, then KEPT_TILES that stay.

    The first pass streams the blocks through shared memory, STAGES deep, and keeps a maximum and a sum a lane. The
    second pass writes the kept tiles at once and reads the blocks again, last one first: what was read last is in L2.
    """
    program = tl.program_id(0).to(tl.int64)
    start = program * STRIDE
    begin, before, length = _vectors(start, WIDTH, VECTOR, ALIGNED)
    row = logits + begin
    CERTAIN: tl.constexpr = WIDTH if ALIGNED else WIDTH - 2 * (VECTOR - 1)
    BLOCK: tl.constexpr = TILES * LANES
    KEPT: tl.constexpr = LOOPS * BLOCK
    # Rare: more padding than the kept tiles hold.
    PADDED: tl.constexpr = KEPT + VECTOR > CLASSES
    soft_scale = LOG2E * inverse_temperature
    in_block = _tile(0, TILES, LANES)

    lane_maximum = tl.full([LANES], LOWEST, tl.float32)
    lane_sum = tl.zeros([LANES], tl.float32)
    soft_sum = tl.zeros([LANES], tl.float32)
    for block in tl.range(0, LOOPS, num_stages=STAGES):
        x = tl.load(row + block * BLOCK + in_block).to(tl.float32)
        if PADDED:
            x = tl.where(before + block * BLOCK + in_block < CLASSES, x, float("-inf"))
        if HAS_TEMPERATURE:
            _, soft_sum = _online(x, lane_maximum, soft_sum, soft_scale)
        lane_maximum, lane_sum = _online(x, lane_maximum, lane_sum, LOG2E)
    x_kept = _read(row, before, length, KEPT, KEPT_TILES, LANES, CERTAIN, CLASSES, WIDTH, VECTOR)
    if not ALIGNED:
        end_column, at_end = _ragged_ends(before, length, WIDTH, VECTOR)
        end_class = at_end & (end_column < CLASSES)
        x_end = tl.load(logits + start + end_column, mask=end_class, other=float("-inf")).to(tl.float32)
    label, target = _target(
        logits + start, program, labels, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED
    )
    counted = label != ignore_index
    if HAS_TEMPERATURE:
        _, soft_sum = _online(x_kept, lane_maximum, soft_sum, soft_scale)
    lane_maximum, lane_sum = _online(x_kept, lane_maximum, lane_sum, LOG2E)

    maximum = tl.max(lane_maximum, axis=0)
    if not ALIGNED:
        maximum = tl.maximum(maximum, tl.max(x_end, axis=0))
    total = tl.sum(lane_sum * tl.exp2(lane_maximum * LOG2E - maximum * LOG2E), axis=0)
    if not ALIGNED:
        total += tl.sum(_exponential(x_end, maximum, LOG2E), axis=0)
    soft_total = total
    if HAS_TEMPERATURE:
        soft_total = tl.sum(soft_sum * tl.exp2(lane_maximum * soft_scale - maximum * soft_scale), axis=0)
        if not ALIGNED:
            soft_total += tl.sum(_exponential(x_end, maximum, soft_scale), axis=0)

    softmax = (maximum, total, soft_scale, soft_total)
    row_loss, slope, complement = _row_loss(target, softmax, class_weight, gamma, kl_weight, HAS_CLASS_WEIGHT)
    tl.store(loss + program, tl.where(counted, row_loss, 0.0))

    if WITH_GRADIENT:
        slope *= gradient_scale
        pull = kl_weight * inverse_temperature * gradient_scale
        hard, soft = _factors(target, softmax, slope, pull)
        out = gradient + program * GRADIENT_STRIDE
        out_begin = out
        if not ALIGNED:
            out_begin = gradient + (program * GRADIENT_STRIDE + (VECTOR - 1)) // VECTOR * VECTOR
        # In place, every thread's gathers come before any thread's writes.
        tl.debug_barrier()
        if counted:
            g_kept = _blend(x_kept, softmax, hard, soft, HAS_TEMPERATURE)
            _write(out_begin, g_kept, length, KEPT, KEPT_TILES, LANES, CERTAIN)
            if not ALIGNED:
                g_end = _blend(x_end, softmax, hard, soft, HAS_TEMPERATURE)
                tl.store(out + end_column, g_end.to(gradient.dtype.element_ty), mask=at_end)
            for back in tl.range(0, LOOPS, num_stages=STAGES):
                at = (LOOPS - 1 - back) * BLOCK
                x = tl.load(row + at + in_block, eviction_policy="evict_first").to(tl.float32)
                if PADDED:
                    x = tl.where(before + at + in_block < CLASSES, x, float("-inf"))
                g = _blend(x, softmax, hard, soft, HAS_TEMPERATURE)
                # Nothing of this row's size stays in L2 until the gradient is used: leave it to rows yet to be re-read.
                tl.store(out_begin + at + in_block, g.to(gradient.dtype.element_ty), eviction_policy="evict_first")
            tl.debug_barrier()
            _correct(out, target, softmax, hard, soft, slope, complement, pull)
        else:
            nothing = tl.zeros([KEPT_TILES, LANES], tl.float32)
            _write(out_begin, nothing, length, KEPT, KEPT_TILES, LANES, CERTAIN)
            for block in tl.range(0, LOOPS):
                tl.store(out_begin + block * BLOCK + in_block, tl.zeros([TILES, LANES], gradient.dtype.element_ty))
            if not ALIGNED:
                tl.store(out + end_column, tl.zeros([2 * VECTOR], gradient.dtype.element_ty), mask=at_end)


@triton.jit
def label_kl_kernel(
    logits,
    result,
    candidates,
    neighbour_ids,
    neighbour_weights,
    inverse_temperature,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    TILES: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One program a row: read it once for its log-sum-exp, then gather each candidate's target."""
    program = tl.program_id(0).to(tl.int64)
    start = program * STRIDE
    begin, before, length = _vectors(start, WIDTH, VECTOR, ALIGNED)
    scale = LOG2E * inverse_temperature
    BLOCK: tl.constexpr = TILES * LANES
    in_block = _tile(0, TILES, LANES)
    lane_maximum = tl.full([LANES], LOWEST, tl.float32)
    lane_sum = tl.zeros([LANES], tl.float32)
    for at in tl.range(0, WIDTH, BLOCK):
        column = at + in_block
        x = tl.load(logits + begin + column, mask=column < length, other=float("-inf"), eviction_policy="evict_first")
        lane_maximum, lane_sum = _online(x.to(tl.float32), lane_maximum, lane_sum, scale)
    maximum = tl.max(lane_maximum, axis=0)
    if not ALIGNED:
        end_column, at_end = _ragged_ends(before, length, WIDTH, VECTOR)
        x_end = tl.load(logits + start + end_column, mask=at_end, other=float("-inf")).to(tl.float32)
        maximum = tl.maximum(maximum, tl.max(x_end, axis=0))
    total = tl.sum(lane_sum * tl.exp2(lane_maximum * scale - maximum * scale), axis=0)
    if not ALIGNED:
        total += tl.sum(_exponential(x_end, maximum, scale), axis=0)
    for candidate in tl.range(0, CANDIDATES):
        index = program * CANDIDATES + candidate
        _, target = _target(
            logits + start, index, candidates, neighbour_ids, neighbour_weights, WIDTH, ENTRIES, ENTRIES_PADDED
        )
        _, known, _, _, weights, mass, _, x_entries = target
        divergence = _divergence(weights, mass, tl.fma(x_entries, scale, -maximum * scale), total)
        tl.store(result + index, tl.where(known, divergence, float("nan")))


@triton.jit
def reduce_kernel(
    loss, labels, reduced, remaining, rows, ignore_index, BLOCK: tl.constexpr, MEAN: tl.constexpr, SCALED: tl.constexpr
):
    """Sum or mean of the row losses in a fixed order, and the factor that the gradient still lacks."""
    lane = tl.arange(0, BLOCK)
    losses = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.int32)
    for at in range(0, rows, BLOCK):
        used = at + lane < rows
        losses += tl.load(loss + at + lane, mask=used, other=0.0)
        label = tl.load(labels + at + lane, mask=used, other=0)
        counts += (used & (label != ignore_index)).to(tl.int32)
    total = tl.sum(losses, axis=0)
    if MEAN:
        counted = tl.sum(counts, axis=0)
        at_least_one = tl.maximum(counted, 1).to(tl.float32)
        tl.store(reduced, total / at_least_one)
        if SCALED:
            # Exactly one where every row counts: then the backward call has nothing to do.
            tl.store(remaining, tl.where(counted == rows, 1.0, rows / at_least_one))
        else:
            tl.store(remaining, 1.0 / at_least_one)
    else:
        tl.store(reduced, total)
        tl.store(remaining, 1.0)


@triton.jit
def scale_kernel(
    gradient,
    factor,
    rows,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    A_ROW: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Multiply rows in place; a row whose factor is one is not touched: few programs, soon done where all are."""
    lane = tl.arange(0, BLOCK)
    index = tl.program_id(0).to(tl.int64)
    for _ in range(tl.program_id(0), rows, PROGRAMS):
        by = tl.load(factor + index) if A_ROW else tl.load(factor)
        if by != 1.0:
            row = gradient + index * STRIDE
            for at in range(0, WIDTH, BLOCK):
                column = at + lane
                value = tl.load(row + column, mask=column < WIDTH, other=0.0).to(tl.float32)
                tl.store(row + column, (value * by).to(gradient.dtype.element_ty), mask=column < WIDTH)
        index += PROGRAMS


# The linear entry's kernels work on a block of columns of the logits, [rows, BLOCK], and keep STATISTICS numbers a row:
# maximum, sum of exponentials, the same at the KL term's temperature, slope of the focal term, 1 - p of the label.


@triton.jit
def block_statistics_kernel(
    block,
    statistics,
    label_logits,
    entry_logits,
    labels,
    neighbour_ids,
    inverse_temperature,
    first,
    width,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    TILES: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Take a block's columns [first, first + width) into the row's running maximum and sums; keep target logits."""
    program = tl.program_id(0).to(tl.int64)
    row = block + program * (TILES * LANES)
    column = _tile(0, TILES, LANES)
    x = tl.load(row + column, mask=column < width, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
    label = tl.load(labels + program).to(tl.int64)
    known = (label >= 0) & (label < CLASSES)
    label_here = known & (label >= first) & (label < first + width)
    x_label = tl.load(row + (label - first), mask=label_here, other=0.0).to(tl.float32)
    tl.store(label_logits + program, x_label, mask=label_here)
    entry = tl.arange(0, ENTRIES_PADDED)
    label = tl.where(known, label, 0)
    ids = tl.load(neighbour_ids + label * ENTRIES + entry, mask=entry < ENTRIES, other=-1).to(tl.int32)
    here = (ids >= first) & (ids < first + width)
    x_entries = tl.load(row + (ids - first), mask=here, other=0.0).to(tl.float32)
    tl.store(entry_logits + program * ENTRIES + entry, x_entries, mask=here)

    kept = statistics + program * STATISTICS
    old = tl.load(kept)
    new = tl.maximum(old, tl.max(tl.max(x, axis=0), axis=0))
    total = tl.sum(tl.sum(tl.exp2(tl.fma(x, LOG2E, -new * LOG2E)), axis=0), axis=0)
    total += tl.load(kept + 1) * tl.exp2(old * LOG2E - new * LOG2E)
    soft_total = total
    if HAS_TEMPERATURE:
        scale = LOG2E * inverse_temperature
        soft_total = tl.sum(tl.sum(tl.exp2(tl.fma(x, scale, -new * scale)), axis=0), axis=0)
        soft_total += tl.load(kept + 2) * tl.exp2(old * scale - new * scale)
    # Every thread has read the old numbers before one overwrites them.
    tl.debug_barrier()
    tl.store(kept, new)
    tl.store(kept + 1, total)
    tl.store(kept + 2, soft_total)


@triton.jit
def row_loss_kernel(
    statistics,
    label_logits,
    entry_logits,
    loss,
    labels,
    neighbour_ids,
    neighbour_weights,
    class_weight,
    gamma,
    kl_weight,
    inverse_temperature,
    ignore_index,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Loss of each row from its complete statistics; adds the slope and 1 - p that the gradient needs."""
    program = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + program).to(tl.int64)
    counted = label != ignore_index
    known = (label >= 0) & (label < CLASSES)
    label = tl.where(known, label, 0)
    ids, inside, weights, mass = _entries(label, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED)
    entry = tl.arange(0, ENTRIES_PADDED)
    x_entries = tl.load(entry_logits + program * ENTRIES + entry, mask=inside, other=0.0)
    x_label = tl.load(label_logits + program)
    kept = statistics + program * STATISTICS
    target = (label, known, ids, inside, weights, mass, x_label, x_entries)
    softmax = (tl.load(kept), tl.load(kept + 1), LOG2E * inverse_temperature, tl.load(kept + 2))
    row_loss, slope, complement = _row_loss(target, softmax, class_weight, gamma, kl_weight, HAS_CLASS_WEIGHT)
    tl.store(loss + program, tl.where(counted, row_loss, 0.0))
    tl.store(kept + 3, slope)
    tl.store(kept + 4, complement)


@triton.jit
def block_gradient_kernel(
    block,
    statistics,
    upstream,
    labels,
    neighbour_ids,
    neighbour_weights,
    kl_weight,
    inverse_temperature,
    ignore_index,
    first,
    width,
    CLASSES: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRIES_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    TILES: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Overwrite a block of logits with upstream * d(row loss)/d(logits)."""
    program = tl.program_id(0).to(tl.int64)
    row = block + program * (TILES * LANES)
    column = _tile(0, TILES, LANES)
    x = tl.load(row + column, mask=column < width, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
    label, target = _target_in_block(
        row, program, first, width, labels, neighbour_ids, neighbour_weights, CLASSES, ENTRIES, ENTRIES_PADDED
    )
    by = tl.load(upstream + program).to(tl.float32)
    kept = statistics + program * STATISTICS
    softmax = (tl.load(kept), tl.load(kept + 1), LOG2E * inverse_temperature, tl.load(kept + 2))
    slope = by * tl.load(kept + 3)
    pull = by * kl_weight * inverse_temperature
    hard, soft = _factors(target, softmax, slope, pull)
    gradient = _blend(x, softmax, hard, soft, HAS_TEMPERATURE)
    gradient = tl.where(label != ignore_index, gradient, 0.0)
    tl.debug_barrier()
    tl.store(row + column, gradient.to(block.dtype.element_ty), mask=column < width)
    tl.debug_barrier()
    if label != ignore_index:
        _correct(row, target, softmax, hard, soft, slope, tl.load(kept + 4), pull)


# From tensors to launches.


@dataclass(frozen=True)
class RowPlan:
    """How a row of a width and element size is cut: constants of `single_read_kernel` or `two_read_kernel`."""

    num_warps: int
    lanes: int
    """Columns that all threads of a program together read with one 16-byte access each."""
    tiles: tuple[int, int, int] = (1, 0, 0)
    """Single read: powers of two, in lanes."""
    loops: int = 0
    """Two reads: blocks that are streamed; 0 is the single read."""
    block_tiles: int = 0
    kept_tiles: int = 0
    stages: int = 4

    @property
    def single_read(self) -> bool:
        return self.loops == 0


# Columns that a program of so many warps holds: 72 values a thread leave eight programs of two warps a multiprocessor,
# 96 two of eight warps (both by registers); a second exponential, where the KL term has its own temperature, halves it.
SINGLE_READ_COLUMNS = {1: 2304, 2: 4608, 4: 9216, 8: 24576, 16: 32768}
SINGLE_READ_COLUMNS_TWO_TEMPERATURES = {1: 1536, 2: 3072, 4: 9216, 8: 18432}


def powers_of_two(count: int) -> tuple[int, int, int]:
    """At most three powers of two, descending, that sum to `count` or little more."""
    parts = [0, 0, 0]
    for index in range(3):
        if count <= 0:
            break
        part = triton.next_power_of_2(count)
        if part > count and index < 2:
            part //= 2
        parts[index] = part
        count -= part
    total = sum(parts)
    if total & (total - 1) == 0:
        return total, 0, 0
    return parts[0], parts[1], parts[2]


@lru_cache(maxsize=256)
def plan_row(width: int, element_size: int, two_temperatures: bool = False, class_weights: bool = False) -> RowPlan:
    """The plan for rows of `width` columns, of `element_size` bytes each."""
    limits = SINGLE_READ_COLUMNS_TWO_TEMPERATURES if two_temperatures else SINGLE_READ_COLUMNS
    for num_warps, columns in limits.items():
        if width <= columns:
            return single_read_plan(width, element_size, num_warps)
    # 64 values a thread fit 128 registers where nothing else wants any.
    plain = not (two_temperatures or class_weights) and width % (16 // element_size) == 0
    return two_read_plan(width, element_size, kept=32768 if plain else 16384)


def two_read_plan(width: int, element_size: int, num_warps: int = 16, kept: int = 32768, stages: int = 4) -> RowPlan:
    """A plan that streams a row but for its last columns, between half of `kept` and `kept` of them."""
    vector = 16 // element_size
    lanes, block_tiles = 32 * num_warps * vector, 16 // vector
    block = block_tiles * lanes
    # Blocks take no mask: they exist in full in every row.
    loops = max(1, -(-(width - kept) // block))
    kept_tiles = triton.next_power_of_2(-(-(width - loops * block) // lanes))
    return RowPlan(num_warps, lanes, loops=loops, block_tiles=block_tiles, kept_tiles=kept_tiles, stages=stages)


def single_read_plan(width: int, element_size: int, num_warps: int) -> RowPlan:
    """A plan that holds the whole row."""
    lanes = 32 * num_warps * 16 // element_size
    return RowPlan(num_warps, lanes, powers_of_two(-(-width // lanes)))


def _vector_layout(logits: Tensor, gradient: Tensor | None) -> bool:
    """Whether whole 16-byte vectors can be read, and written at the same columns."""
    vector = 16 // logits.element_size()
    readable = (logits.stride(1) == 1 or logits.shape[1] == 1) and logits.data_ptr() % 16 == 0
    if gradient is None or gradient is logits:
        return readable
    return readable and (len(logits) <= 1 or (gradient.stride(0) - logits.stride(0)) % vector == 0)


def _row_constants(logits: Tensor) -> dict[str, int | bool]:
    rows, width = logits.shape
    vector = 16 // logits.element_size()
    stride = logits.stride(0) if rows > 1 else width
    aligned = stride % vector == 0 and width % vector == 0
    return {"WIDTH": width, "STRIDE": stride, "VECTOR": vector, "ALIGNED": aligned}


def _table_constants(neighbour_ids: Tensor) -> dict[str, int]:
    entries = neighbour_ids.shape[1]
    return {"ENTRIES": entries, "ENTRIES_PADDED": triton.next_power_of_2(entries)}


def _launch(
    kernel: triton.JITFunction, programs: int, *arguments: Tensor | float, num_warps: int, **constants: int
) -> None:
    assert isinstance(arguments[0], Tensor)
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)


def row_launch(
    logits: Tensor, gradient: Tensor | None, objective: Objective, classes: int, plan: RowPlan
) -> tuple[triton.JITFunction, dict[str, int | bool]]:
    """The kernel that a plan names and its constants, for tensors in a layout of whole vectors."""
    constants: dict[str, int | bool] = {
        "CLASSES": classes,
        **_row_constants(logits),
        **_table_constants(objective.neighbour_ids),
        "LANES": plan.lanes,
        "HAS_CLASS_WEIGHT": objective.class_weight is not None,
        "HAS_TEMPERATURE": objective.temperature != 1.0,
        "WITH_GRADIENT": gradient is not None,
    }
    constants["GRADIENT_STRIDE"] = 0 if gradient is None else _row_constants(gradient)["STRIDE"]
    if plan.single_read:
        constants |= {"TILES_0": plan.tiles[0], "TILES_1": plan.tiles[1], "TILES_2": plan.tiles[2]}
        return single_read_kernel, constants
    constants |= {
        "TILES": plan.block_tiles,
        "LOOPS": plan.loops,
        "KEPT_TILES": plan.kept_tiles,
        "STAGES": plan.stages,
    }
    return two_read_kernel, constants


def focal_label_kl_rows(
    logits: Tensor,
    gradient: Tensor | None,
    objective: Objective,
    gradient_scale: float,
    classes: int,
    plan: RowPlan | None = None,
) -> Tensor:
    """Loss of each row, float32 [B]; its gradient times `gradient_scale` goes into `gradient`, which may be `logits`.

    Tensors without whole vectors (column stride, a start off 16 bytes) are copied first.
    """
    loss = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if not len(logits):
        return loss
    target = gradient
    if not _vector_layout(logits, gradient):
        logits = logits.clone(memory_format=torch.contiguous_format)
        gradient = None if gradient is None else torch.empty_like(logits)
    has_temperature, has_class_weight = objective.temperature != 1.0, objective.class_weight is not None
    plan = plan or plan_row(logits.shape[1], logits.element_size(), has_temperature, has_class_weight)
    kernel, constants = row_launch(logits, gradient, objective, classes, plan)
    out = logits if gradient is None else gradient
    arguments = (*_pointers(objective), *_settings(objective), gradient_scale, objective.ignore_index)
    _launch(kernel, len(logits), logits, out, loss, *arguments, num_warps=plan.num_warps, **constants)
    if target is not None and gradient is not None and target is not gradient:
        target.copy_(gradient)
    return loss


def _pointers(objective: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, ids, weights and class weights (anything where there are none) as a kernel can index them."""
    labels, ids, weights, class_weight, *_ = objective.contiguous()
    return labels, ids, weights, weights if class_weight is None else class_weight


def _settings(objective: Objective) -> tuple[float, float, float]:
    return objective.gamma, objective.kl_weight, 1.0 / objective.temperature


def reduce_constants(rows: int, mean: bool, scaled: bool) -> dict[str, int]:
    """Constants and warps of `reduce_kernel`."""
    block = min(max(triton.next_power_of_2(rows), 32), 8192)
    return {"BLOCK": block, "MEAN": mean, "SCALED": scaled, "num_warps": max(1, min(16, block // 256))}


def reduced(loss: Tensor, objective: Objective, reduction: str, scale: float) -> tuple[Tensor, Tensor]:
    """The row losses reduced, and the factor that the gradient (already times `scale`) lacks."""
    if reduction == "none":
        return loss, loss.new_ones(())
    result, remaining = loss.new_empty(()), loss.new_empty(())
    constants = reduce_constants(len(loss), reduction == "mean", scale != 1.0 or len(loss) == 1)
    labels, ignore_index = objective.labels.contiguous(), objective.ignore_index
    _launch(reduce_kernel, 1, loss, labels, result, remaining, len(loss), ignore_index, **constants)
    return result, remaining


def scale_constants(gradient: Tensor, factor: Tensor) -> dict[str, int]:
    """Constants and warps of `scale_kernel`."""
    block = min(triton.next_power_of_2(gradient.shape[1]), 4096)
    return {
        "WIDTH": gradient.shape[1],
        "STRIDE": _row_constants(gradient)["STRIDE"],
        "BLOCK": block,
        "A_ROW": factor.dim() == 1,
        "PROGRAMS": min(len(gradient), 1024),
        "num_warps": max(1, min(8, block // 512)),
    }


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    """Multiply rows in place by float32 `factor`, a scalar or one a row."""
    if not gradient.numel():
        return
    if gradient.stride(1) != 1 and gradient.shape[1] > 1:
        gradient.mul_(factor if factor.dim() == 0 else factor[:, None])
        return
    constants = scale_constants(gradient, factor)
    _launch(scale_kernel, constants["PROGRAMS"], gradient, factor.contiguous(), len(gradient), **constants)


def label_kl_constants(logits: Tensor, candidates: Tensor, neighbour_ids: Tensor) -> dict[str, int]:
    """Constants and warps of `label_kl_kernel` for tensors in a layout of whole vectors."""
    constants = _row_constants(logits)
    num_warps = max(1, min(8, triton.next_power_of_2(logits.shape[1]) // 1024))
    lanes = 32 * num_warps * constants["VECTOR"]
    tiles = max(1, min(4, triton.next_power_of_2(-(-logits.shape[1] // lanes))))
    return {
        "CANDIDATES": candidates.shape[1],
        **constants,
        **_table_constants(neighbour_ids),
        "LANES": lanes,
        "TILES": tiles,
        "num_warps": num_warps,
    }


def label_kl_rows(
    logits: Tensor, candidates: Tensor, neighbour_ids: Tensor, neighbour_weights: Tensor, temperature: float
) -> Tensor:
    """KL of each candidate, float32 [B, M]."""
    result = torch.empty(candidates.shape, dtype=torch.float32, device=logits.device)
    if not result.numel():
        return result
    if not _vector_layout(logits, None):
        logits = logits.clone(memory_format=torch.contiguous_format)
    _launch(
        label_kl_kernel,
        len(logits),
        logits,
        result,
        candidates.contiguous(),
        neighbour_ids.contiguous(),
        neighbour_weights.contiguous(),
        1.0 / temperature,
        **label_kl_constants(logits, candidates, neighbour_ids),
    )
    return result


BLOCK_COLUMNS = 4096
BLOCK_BYTES = 64 * 2**20
"""The linear entry's scratch: blocks of this many columns, of as many rows as stay within this many bytes."""


def block_constants(element_size: int, objective: Objective) -> dict[str, int]:
    """Constants and warps of the block kernels; a block is one tile of a program."""
    lanes = 32 * 4 * 16 // element_size
    return {
        "CLASSES": len(objective.neighbour_ids),
        **_table_constants(objective.neighbour_ids),
        "LANES": lanes,
        "TILES": BLOCK_COLUMNS // lanes,
        "HAS_TEMPERATURE": objective.temperature != 1.0,
        "STATISTICS": STATISTICS,
        "num_warps": 4,
    }


def row_loss_constants(objective: Objective) -> dict[str, int]:
    """Constants and warps of `row_loss_kernel`."""
    return {
        "CLASSES": len(objective.neighbour_ids),
        **_table_constants(objective.neighbour_ids),
        "HAS_CLASS_WEIGHT": objective.class_weight is not None,
        "STATISTICS": STATISTICS,
        "num_warps": 1,
    }


def _blocks(rows: int, classes: int, element_size: int) -> list[tuple[slice, list[slice]]]:
    """Column slices, each with the row slices to take it in."""
    step = max(1, BLOCK_BYTES // (BLOCK_COLUMNS * element_size))
    row_slices = [slice(at, min(at + step, rows)) for at in range(0, rows, step)]
    return [(slice(at, min(at + BLOCK_COLUMNS, classes)), row_slices) for at in range(0, classes, BLOCK_COLUMNS)]


def _block_logits(scratch: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias into the scratch's first columns."""
    block = scratch[: len(hidden), : len(weight)]
    if bias is None:
        return torch.mm(hidden, weight.T, out=block)
    return torch.addmm(bias, hidden, weight.T, out=block)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, not rounded to the factors' type."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def linear_focal_label_kl_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Loss of each row [B] and its statistics [B, 5]; the logits exist a block at a time."""
    rows, classes = len(hidden), len(weight)
    loss = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    statistics = torch.zeros(rows, STATISTICS, dtype=torch.float32, device=hidden.device)
    if not rows:
        return loss, statistics
    statistics[:, 0] = LOWEST.value
    labels, neighbour_ids, *_ = pointers = _pointers(objective)
    label_logits = torch.empty_like(loss)
    entry_logits = loss.new_empty(rows, neighbour_ids.shape[1])
    blocks = _blocks(rows, classes, hidden.element_size())
    scratch = hidden.new_empty(blocks[0][1][0].stop, BLOCK_COLUMNS)
    constants = block_constants(hidden.element_size(), objective)
    for columns, row_slices in blocks:
        first, width = columns.start, columns.stop - columns.start
        for part in row_slices:
            _block_logits(scratch, hidden[part], weight[columns], None if bias is None else bias[columns])
            kept = (statistics[part], label_logits[part], entry_logits[part], labels[part])
            where = (neighbour_ids, 1.0 / objective.temperature, first, width)
            _launch(block_statistics_kernel, part.stop - part.start, scratch, *kept, *where, **constants)
    arguments = (*pointers, *_settings(objective), objective.ignore_index)
    constants = row_loss_constants(objective)
    _launch(row_loss_kernel, rows, statistics, label_logits, entry_logits, loss, *arguments, **constants)
    return loss, statistics


def linear_focal_label_kl_gradients(
    upstream: Tensor, statistics: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(upstream * loss) for hidden, weight and bias: every block of logits is computed once more."""
    rows, classes = len(hidden), len(weight)
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    of_weight = torch.zeros_like(weight) if not rows else torch.empty_like(weight)
    of_bias = weight.new_zeros(classes)
    if not rows:
        return torch.zeros_like(hidden), of_weight, of_bias
    labels, ids, weights, _ = _pointers(objective)
    blocks = _blocks(rows, classes, hidden.element_size())
    scratch = hidden.new_empty(blocks[0][1][0].stop, BLOCK_COLUMNS)
    constants = block_constants(hidden.element_size(), objective)
    for columns, row_slices in blocks:
        first, width = columns.start, columns.stop - columns.start
        whole = len(row_slices) == 1
        block_of_weight = torch.zeros_like(weight[columns], dtype=torch.float32) if not whole else None
        block_of_bias = torch.zeros_like(of_bias[columns], dtype=torch.float32)
        for part in row_slices:
            block = _block_logits(scratch, hidden[part], weight[columns], None if bias is None else bias[columns])
            arguments = (statistics[part], upstream[part], labels[part], ids, weights, *_settings(objective)[1:])
            bounds = (objective.ignore_index, first, width)
            _launch(block_gradient_kernel, part.stop - part.start, scratch, *arguments, *bounds, **constants)
            of_hidden[part] += _product(block, weight[columns])
            if block_of_weight is None:
                torch.mm(block.T, hidden[part], out=of_weight[columns])
            else:
                block_of_weight += _product(block.T, hidden[part])
            if bias is not None:
                block_of_bias += block.sum(0, dtype=torch.float32)
        if block_of_weight is not None:
            of_weight[columns] = block_of_weight
        of_bias[columns] = block_of_bias
    return of_hidden.to(hidden.dtype), of_weight, of_bias
