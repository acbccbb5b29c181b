"""Kernel 2 against its floors and its rivals: the colour-label matcher on ragged batches of products.

Every variant is checked against float64 before it is timed, in the same run. Rivals get a rectangular batch that is
padded already, and the same absorbed weights. Times (timing.py) are median, p20 and p80; "graph" replays the call from
a CUDA graph: the device's time without Python's. Floors: the matrix products at the rate of a large square product in
the same run, on as many processors as there are products; the weights read from L2 once a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import matcher_rivals
from benchmarks.kernels.timing import (
    Row,
    Timing,
    gpu_folder,
    graph_of,
    not_measured,
    reason,
    time_calls,
    write_measured,
)
from benchmarks.results import NOT_MEASURED
from kernels import reference_matcher
from kernels.matcher import match_products
from kernels.matcher_weights import MatcherWeights, UnitWeights, UpdateWeights
from kernels.ragged import PaddedGroup, RaggedProducts

PACKAGES = ("torch", "triton")
WIDTH, UNITS = 128, 3
# What an H200 streams from L2, all processors together and one alone: the rates behind the project's weight-stream
# floors (5.5 TB/s at 4,096 products in 512 blocks, 110 GB/s at one product), not measured by this benchmark.
L2_BYTES_PER_US, L2_BYTES_PER_US_AND_PROCESSOR = 5.5e6, 110e3
SETS = 4
CHECKED_PRODUCTS = 48
ERROR_LIMIT = 2e-2
"""Norm of the error over norm of the logits that rounding to bfloat16 layer by layer may cost."""


@dataclass(frozen=True)
class Case:
    """Products of n images and m labels; where `ragged`, n is drawn from 2 to 12 and m from n to n + 8."""

    name: str
    products: int
    ragged: bool = False
    goal_us: float | None = None

    def sizes(self) -> tuple[Tensor, Tensor]:
        """Images and labels of each product, int64 [P]."""
        if not self.ragged:
            return torch.full((self.products,), 8), torch.full((self.products,), 16)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(2, 13, (self.products,), generator=generator)
        return images, images + torch.randint(0, 9, (self.products,), generator=generator)


CASES = (
    Case("1 product, 8 x 16", 1, goal_us=30),
    Case("64 products, 8 x 16", 64, goal_us=40),
    Case("1,024 products, 8 x 16", 1024, goal_us=130),
    Case("4,096 products, 8 x 16", 4096, goal_us=480),
    Case("1,024 products, 2-12 x 2-20", 1024, ragged=True),
)
QUICK_CASES = CASES[:2]


@dataclass(frozen=True)
class Inputs:
    """One set of tokens of a case, packed and padded; several are in rotation."""

    weights: MatcherWeights
    units: list[UnitWeights]
    products: RaggedProducts
    image_tokens: Tensor
    label_tokens: Tensor
    padded: tuple[Tensor, Tensor, Tensor, Tensor]
    group: PaddedGroup


def random_weights(device: str) -> MatcherWeights:
    """Weights that keep tokens and logits near one."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, device=device) / shape[0] ** 0.5

    def update() -> UpdateWeights:
        first, bias = normal(2 * WIDTH, 2 * WIDTH), normal(2 * WIDTH)
        return UpdateWeights(first, bias, normal(2 * WIDTH, WIDTH, scale=0.7), normal(WIDTH))

    units = [
        UnitWeights(
            score=normal(WIDTH, WIDTH, scale=WIDTH**-0.5),
            score_bias=normal(WIDTH),
            self_update=update(),
            edge_query=normal(WIDTH, WIDTH),
            edge_bias=normal(WIDTH),
            edge_key=normal(WIDTH, WIDTH),
            edge_weight=normal(WIDTH, scale=2.0),
            cross_update=update() if unit < UNITS - 1 else None,
        )
        for unit in range(UNITS)
    ]
    return MatcherWeights.pack(units, torch.bfloat16)


def rounded(unit: UnitWeights, dtype: torch.dtype = torch.bfloat16) -> UnitWeights:
    """A unit in bfloat16 or float16, as the rivals run it."""

    def update(weights: UpdateWeights) -> UpdateWeights:
        return UpdateWeights(*(tensor.to(dtype) for tensor in vars(weights).values()))

    fields = dict(vars(unit))
    cross_update = fields.pop("cross_update")
    self_update = update(fields.pop("self_update"))
    return UnitWeights(
        **{name: tensor.to(dtype) for name, tensor in fields.items()},
        self_update=self_update,
        cross_update=None if cross_update is None else update(cross_update),
    )


def make_inputs(case: Case, weights: MatcherWeights) -> list[Inputs]:
    """Sets of random tokens of the case's sizes."""
    images, labels = case.sizes()
    device = weights.matrices.device
    zero = torch.zeros(1, dtype=torch.int64)
    cu_images, cu_labels = torch.cat([zero, images.cumsum(0)]), torch.cat([zero, labels.cumsum(0)])
    products = RaggedProducts.from_cumulative(cu_images, cu_labels, int(images.sum()), int(labels.sum()))
    group = products.one_group()
    units = [rounded(unit) for unit in weights.units]
    made = []
    for _ in range(SETS):
        sides = [torch.randn(int(side.sum()), WIDTH, device=device).bfloat16() for side in (images, labels)]
        padded = (
            sides[0][group.image_index.to(device)],
            sides[1][group.label_index.to(device)],
            group.image_present.to(device),
            group.label_present.to(device),
        )
        made.append(Inputs(weights, units, products, sides[0], sides[1], padded, group))
    return made


# Variants: each returns packed logits, or padded ones that `packed` brings to the same order.


def front_door(inputs: Inputs) -> Tensor:
    """What serving calls: checks, planning, one copy of the plan, one launch."""
    lengths = (inputs.products.cu_images, inputs.products.cu_labels)
    return match_products(inputs.weights, inputs.image_tokens, inputs.label_tokens, *lengths)


def kernel_alone(tile: int | None) -> Callable[[list[Inputs]], list[Callable[[], Tensor]]]:
    """The launch with its plan on the device; `tile` None takes the plan in use."""

    def make(sets: list[Inputs]) -> list[Callable[[], Tensor]]:
        from kernels import matcher_triton

        products, device = sets[0].products, sets[0].weights.matrices.device
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        if tile is None:
            plan = matcher_triton.plan_tiles(products, processors)
        else:
            plan = matcher_triton.fill_tiles(products, tile)
        if plan.long:
            raise ValueError(f"{len(plan.long)} products fit no tile of {tile} tokens")
        places = matcher_triton.upload(products, plan, device)
        logits = torch.empty(products.pairs, device=device)

        def call(x: Inputs) -> Tensor:
            matcher_triton.launch(x.weights, x.image_tokens, x.label_tokens, places, plan, logits)
            return logits

        return [lambda x=x: call(x) for x in sets]  # type: ignore[misc]

    return make


def padded_matcher(
    units: list[UnitWeights], images: Tensor, labels: Tensor, image_present: Tensor, label_present: Tensor
) -> Tensor:
    """What one writes in torch: tokens [P, n, d] and [P, m, d], masks, logits [P, n, m]."""

    def attend(scores: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        return scores.float().masked_fill(~present[:, None], float("-inf")).softmax(-1).to(keys.dtype) @ keys

    def own(unit: UnitWeights, tokens: Tensor, present: Tensor) -> Tensor:
        return attend((tokens @ unit.score + unit.score_bias) @ tokens.transpose(1, 2), tokens, present)

    def edges(unit: UnitWeights, queries: Tensor, keys: Tensor) -> Tensor:
        query, key = queries @ unit.edge_query + unit.edge_bias, keys @ unit.edge_key
        return (query[:, :, None] + key[:, None]).relu() @ unit.edge_weight

    def update(weights: UpdateWeights, tokens: Tensor, mean: Tensor) -> Tensor:
        hidden = torch.cat([tokens, mean], -1) @ weights.input + weights.input_bias
        return tokens + hidden.relu() @ weights.output + weights.output_bias

    for unit in units:
        images = update(unit.self_update, images, own(unit, images, image_present))
        labels = update(unit.self_update, labels, own(unit, labels, label_present))
        over_labels = edges(unit, images, labels)
        if unit.cross_update is not None:
            over_images = edges(unit, labels, images)
            images, labels = (
                update(unit.cross_update, images, attend(over_labels, labels, label_present)),
                update(unit.cross_update, labels, attend(over_images, images, image_present)),
            )
    return over_labels


def on_padded(function: Callable[..., Tensor]) -> Callable[[list[Inputs]], list[Callable[[], Tensor]]]:
    """A rival bound to every set's rectangular batch."""
    return lambda sets: [lambda x=x: function(x.units, *x.padded) for x in sets]  # type: ignore[misc]


def through(rival: Callable[..., list[Callable[[], Tensor]]], **options: Any) -> Callable[[list[Inputs]], Any]:
    """A runtime of `matcher_rivals` bound to every set's rectangular batch, in float16."""

    def make(sets: list[Inputs]) -> list[Callable[[], Tensor]]:
        units = [rounded(unit, torch.float16) for unit in sets[0].weights.units]
        padded = [(x.padded[0].half(), x.padded[1].half(), *x.padded[2:]) for x in sets]
        return rival(padded_matcher, units, padded, **options)

    return make


def compiled(**options: Any) -> Callable[[list[Inputs]], list[Callable[[], Tensor]]]:
    """Through torch.compile; CUDA graphs are captured by this benchmark, for every variant alike."""
    return on_padded(torch.compile(padded_matcher, dynamic=False, options={"max_autotune": True, **options}))


@dataclass(frozen=True)
class Variant:
    """A way to compute a case: `make` binds it to the sets of inputs."""

    name: str
    make: Callable[[], Callable[[list[Inputs]], list[Callable[[], Tensor]]]]
    modes: tuple[str, ...] = ("eager", "graph")
    in_quick: bool = True
    is_ours: bool = False


VARIANTS = (
    Variant("match_products, kernel alone", lambda: kernel_alone(None), is_ours=True),
    Variant(
        "match_products, front door",
        lambda: lambda sets: [lambda x=x: front_door(x) for x in sets],  # type: ignore[misc]
        modes=("eager",),
        is_ours=True,
    ),
    Variant("kernel in tiles of 32 tokens", lambda: kernel_alone(32), ("graph",), in_quick=False),
    Variant("kernel in tiles of 128 tokens", lambda: kernel_alone(128), ("graph",), in_quick=False),
    Variant("torch eager, padded", lambda: on_padded(padded_matcher)),
    Variant("torch.compile max-autotune, padded", compiled),
    Variant(
        "torch.compile, a Triton kernel a layer, padded",
        lambda: compiled(max_autotune_gemm_backends="TRITON"),
        in_quick=False,
    ),
    # ONNX Runtime launches on a stream of its own choice while torch captures: it has its own CUDA graphs.
    Variant("ONNX Runtime CUDA, padded", lambda: through(matcher_rivals.onnx_runtime, cuda_graph=False), ("eager",)),
    Variant(
        "ONNX Runtime CUDA, its CUDA graph, padded",
        lambda: through(matcher_rivals.onnx_runtime, cuda_graph=True),
        ("eager",),
    ),
    Variant("TensorRT, padded", lambda: through(matcher_rivals.tensorrt)),
)


# Correctness.


def checked_products(products: int) -> list[int]:
    """Products whose logits are compared, the first and the last among them."""
    return sorted(set(torch.linspace(0, products - 1, min(CHECKED_PRODUCTS, products)).long().tolist()))


def check(logits: Tensor, inputs: Inputs) -> None:
    """Raise unless the logits of a sample of products are right; NaN never passes."""
    products, group = inputs.products, inputs.group
    if logits.dim() == 3:
        device = logits.device
        packed = torch.full((products.pairs,), float("nan"), device=device)
        packed[group.pair_index.to(device)] = logits.flatten()[group.pair_place.to(device)].float()
        logits = packed
    found, expected = [], []
    for product in checked_products(len(products)):
        first, end = products.cu_images[product : product + 2].tolist()
        first_label, end_label = products.cu_labels[product : product + 2].tolist()
        images, labels = inputs.image_tokens[first:end].double(), inputs.label_tokens[first_label:end_label].double()
        expected.append(reference_matcher.match_product(inputs.weights, images, labels).flatten())
        found.append(logits[products.cu_pairs[product] : products.cu_pairs[product + 1]].double())
    error = float((torch.cat(found) - torch.cat(expected)).norm() / torch.cat(expected).norm())
    if not error <= ERROR_LIMIT:
        raise ValueError(f"wrong: logits off by {error:.1e} of their norm, limit {ERROR_LIMIT:.0e}")


# Floors.


def matrix_flops(images: Tensor, labels: Tensor) -> int:
    """Operations of the matrix products on absorbed weights, f_edge's sums over pairs included."""
    tokens, squares, pairs = (images + labels).sum(), (images**2 + labels**2).sum(), (images * labels).sum()
    weights = (15 * UNITS - 6) * WIDTH**2
    # Scores and means within the sides; of a pair f_edge's last layer and the means, both ways but in the last unit.
    attention = UNITS * 4 * WIDTH * squares + (UNITS - 1) * 8 * WIDTH * pairs + 2 * WIDTH * pairs
    return int(2 * weights * tokens + attention)


def floors(case: Case, processors: int, flops_per_us: float, tiles: int) -> dict[str, float]:
    """Microseconds that the matrix products and the weights' way from L2 take at least."""
    share = min(case.products, processors) / processors
    weight_bytes = (15 * UNITS - 6) * WIDTH**2 * 2
    one_after_another = math.ceil(tiles / processors) * weight_bytes / L2_BYTES_PER_US_AND_PROCESSOR
    return {
        "tensor_core_floor_us": round(matrix_flops(*case.sizes()) / (flops_per_us * share), 2),
        "weight_stream_floor_us": round(max(one_after_another, tiles * weight_bytes / L2_BYTES_PER_US), 2),
    }


# The run.


def measured(case: Case, variant: Variant, mode: str, timing: Timing, limits: dict[str, float]) -> Row:
    """A row of the table and of the JSON file."""
    row = timing.row(case.name, variant.name, mode) | {
        "tflops": round(matrix_flops(*case.sizes()) / timing.median / 1e6, 1),
        **limits,
        "percent_of_floor": round(100 * max(limits.values()) / timing.median, 1),
    }
    return row | ({"goal_us": case.goal_us} if variant.is_ours and case.goal_us else {})


def run_case(case: Case, weights: MatcherWeights, flops_per_us: float, quick: bool) -> Iterator[Row]:
    """Every variant of a case, eager and as a CUDA graph."""
    from kernels import matcher_triton

    repetitions = 30 if quick else 100
    sets = make_inputs(case, weights)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    tiles = len(matcher_triton.plan_tiles(sets[0].products, processors).tiles)
    limits = floors(case, processors, flops_per_us, tiles)
    for variant in VARIANTS:
        if quick and not variant.in_quick:
            continue
        try:
            calls = variant.make()(sets)
            check(calls[0](), sets[0])
        except Exception as error:  # A rival that fails is a row of the table, not the end of the run.
            yield from (not_measured(case.name, variant.name, mode, reason(error)) for mode in variant.modes)
            continue
        for mode in variant.modes:
            try:
                timed = calls if mode == "eager" else [graph_of(call) for call in calls]
                yield measured(case, variant, mode, time_calls(timed, repetitions), limits)
            except Exception as error:
                yield not_measured(case.name, variant.name, mode, reason(error))
        torch.cuda.empty_cache()


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    heads = f"{'median':>9} {'p20':>9} {'p80':>9} {'TFLOP/s':>8} {'floors: products':>16} {'weights':>8} {'%':>6}"
    lines = [f"{'case':<28} {'variant':<48} {'mode':<6} {heads}   (times in microseconds)"]
    for row in rows:
        head = f"{row['case']:<28} {row['variant'][:48]:<48} {row['mode']:<6} "
        if row["median_us"] == NOT_MEASURED:
            lines.append(head + f"{NOT_MEASURED}: {row['why']}")
            continue
        goal = f" goal {row['goal_us']:g} us" if "goal_us" in row else ""
        lines.append(
            head
            + f"{row['median_us']:>9} {row['p20_us']:>9} {row['p80_us']:>9} {row['tflops']:>8} "
            + f"{row['tensor_core_floor_us']:>16} {row['weight_stream_floor_us']:>8} {row['percent_of_floor']:>6}{goal}"
        )
    return "\n".join(lines)


def product_rate() -> float:
    """Operations a microsecond of a large square product in bfloat16."""
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / time_calls([lambda: square @ square], 20).median


def main(quick: bool, output: Path) -> None:
    """Measure everything, print as it comes, write matcher.json into the GPU's folder of `output`."""
    if not torch.cuda.is_available():
        print("No GPU: times of the matcher are not measured; the suite's label_kl compiles both kernels.", flush=True)
        return
    folder = gpu_folder(output, torch.cuda.get_device_name())
    torch.manual_seed(0)
    rows: list[Row] = []
    with torch.inference_mode():
        weights, flops_per_us = random_weights("cuda"), product_rate()
        print(f"A large product in bfloat16 runs at {flops_per_us / 1e6:.0f} TFLOP/s.")
        print(table([]))
        for case in QUICK_CASES if quick else CASES:
            for row in run_case(case, weights, flops_per_us, quick):
                rows.append(row)
                print(table([row]).splitlines()[1], flush=True)
            write_measured("matcher", rows, PACKAGES, folder)
            torch.cuda.empty_cache()
    print("Wrote", folder / "matcher.json")
