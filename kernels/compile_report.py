"""Ahead-of-time compilation of every kernel configuration, without a GPU: `python -m kernels.compile_report`.

Each configuration is compiled to machine code for sm_80, 90, 100 and 120, as a launch on such a GPU would do, and what
decides its speed is read off: registers, spills and shared memory from the binary, and widths of loads and stores from
the PTX. Loads of a row of logits carry an eviction policy, are vectors or go through cp.async, as do blocks of tokens
and weights of the matcher; gathers of single numbers do not.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import label_kl_triton, matcher_triton
from kernels.label_kl_objective import Objective

SHARED_BYTES = {80: 163 * 2**10, 90: 227 * 2**10, 100: 227 * 2**10, 120: 99 * 2**10}
"""Architecture -> shared memory that a block may have (CUDA programming guide, technical specifications)."""
ARCHITECTURES = tuple(SHARED_BYTES)
ENTRIES = 21
"""K + 1 of the configurations: the label and its 20 nearest."""
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FLOATS = ("gamma", "kl_weight", "inverse_temperature", "gradient_scale")
_INTEGERS = ("ignore_index", "first", "width", "rows")
_ALIGNED_INTEGERS = ("first", "width")
_LOGITS = ("logits", "gradient", "block")
_LABELS = ("labels", "candidates")
_MATCHER_TYPES = {
    **dict.fromkeys(("image_tokens", "label_tokens", "matrices", "rounded_scratch"), "*bf16"),
    **dict.fromkeys(("logits", "vectors", "exact_scratch", "score_scratch"), "*fp32"),
    **dict.fromkeys(("cu_images", "cu_labels", "cu_pairs", "tile_products", "index_scratch"), "*i32"),
    **dict.fromkeys(("tiles", "image_stride", "label_stride"), "i32"),
}
_MATCHER_ALIGNED_INTEGERS = ("image_stride", "label_stride")


@dataclass(frozen=True)
class Configuration:
    """A kernel with the constants and types of one use."""

    name: str
    kernel: triton.JITFunction
    constants: dict[str, Any]
    types: dict[str, str]
    """Triton's name for the type of every parameter that is no constant."""
    dtype: torch.dtype
    num_warps: int
    aligned: bool
    """Rows begin at 16 bytes: every access of a row must be wide."""
    options: dict[str, Any] = field(default_factory=lambda: {"enable_fp_fusion": False})
    aligned_integers: tuple[str, ...] = _ALIGNED_INTEGERS
    architectures: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a configuration for one architecture."""

    name: str
    kernel: str
    architecture: int
    num_warps: int
    aligned: bool
    registers: int
    spill_bytes: int
    shared_bytes: int
    row_loads: dict[int, int]
    """Width in bits -> number of load instructions of the row, a thread; cp.async included."""
    row_stores: dict[int, int]
    other_loads: dict[int, int]
    instructions: int
    cubin_bytes: int

    @property
    def fits(self) -> bool:
        """A block gets as much shared memory."""
        return self.shared_bytes <= SHARED_BYTES.get(self.architecture, min(SHARED_BYTES.values()))

    @property
    def narrowest_row_access(self) -> int:
        return min([*self.row_loads, *self.row_stores], default=0)


def _objective(classes: int, temperature: float = 1.0, class_weights: bool = False) -> Objective:
    ids = torch.empty(classes, ENTRIES, dtype=torch.int32, device="meta")
    class_weight = torch.empty(classes, device="meta") if class_weights else None
    return Objective(ids[:, 0], ids, torch.empty_like(ids, dtype=torch.float32), class_weight, temperature=temperature)


def _row_configuration(
    name: str,
    classes: int,
    width: int,
    dtype: torch.dtype,
    temperature: float = 1.0,
    with_gradient: bool = True,
    class_weights: bool = False,
) -> Configuration:
    logits = torch.empty(2, width, dtype=dtype, device="meta")
    objective = _objective(classes, temperature, class_weights)
    plan = label_kl_triton.plan_row(width, dtype.itemsize, temperature != 1.0, class_weights)
    gradient = logits if with_gradient else None
    kernel, constants = label_kl_triton.row_launch(logits, gradient, objective, classes, plan)
    types = _types(kernel, constants, dtype)
    return Configuration(name, kernel, constants, types, dtype, plan.num_warps, bool(constants["ALIGNED"]))


def _configuration(
    name: str, kernel: triton.JITFunction, constants: dict[str, int], dtype: torch.dtype, aligned: bool = True
) -> Configuration:
    constants = dict(constants)
    num_warps = constants.pop("num_warps")
    return Configuration(name, kernel, constants, _types(kernel, constants, dtype), dtype, num_warps, aligned)


def _matcher_configurations() -> list[Configuration]:
    """Kernel 2 at full size: every tile, with blocks of weights as large as each architecture's shared memory takes."""
    found = []
    for tile in matcher_triton.TILES:
        by_constants: dict[int, list[int]] = {}
        for architecture, shared_bytes in SHARED_BYTES.items():
            block = matcher_triton.matcher_constants(3, 128, tile, torch.bfloat16, shared_bytes)["BLOCK"]
            by_constants.setdefault(block, []).append(architecture)
        for block, architectures in by_constants.items():
            shared_bytes = min(SHARED_BYTES[architecture] for architecture in architectures)
            constants = matcher_triton.matcher_constants(3, 128, tile, torch.bfloat16, shared_bytes)
            options = {name: constants.pop(name) for name in ("num_stages", "enable_fp_fusion")}
            found.append(
                Configuration(
                    name=f"matcher, tiles of {tile} tokens, weights in blocks of {block}",
                    kernel=matcher_triton.matcher_kernel,
                    num_warps=constants.pop("num_warps"),
                    constants=constants,
                    types=_MATCHER_TYPES,
                    dtype=torch.bfloat16,
                    aligned=True,
                    options=options,
                    aligned_integers=_MATCHER_ALIGNED_INTEGERS,
                    architectures=tuple(architectures),
                )
            )
    return found


def configurations() -> list[Configuration]:
    """Every kernel, at the sizes that performance figures are given for, aligned and not."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    rows = [
        _row_configuration("focal_label_kl 4,350 in 4,352 bf16", 4350, 4352, bf16),
        _row_configuration("focal_label_kl 4,350 bf16", 4350, 4350, bf16),
        _row_configuration("focal_label_kl 4,350 in 4,352 fp16", 4350, 4352, fp16),
        _row_configuration("focal_label_kl 4,350 in 4,352 fp32", 4350, 4352, fp32),
        _row_configuration("focal_label_kl 4,350 fp32", 4350, 4350, fp32),
        _row_configuration("focal_label_kl 4,350 in 4,352 bf16, temperature", 4350, 4352, bf16, 2.0),
        _row_configuration("focal_label_kl 4,350 in 4,352 bf16, loss only", 4350, 4352, bf16, 1.0, False),
        _row_configuration("focal_label_kl 4,350 in 4,352 bf16, class weights", 4350, 4352, bf16, class_weights=True),
        _row_configuration("focal_label_kl 142 bf16", 142, 142, bf16),
        _row_configuration("focal_label_kl 21,841 in 21,888 bf16", 21841, 21888, bf16),
        _row_configuration("focal_label_kl 21,841 bf16", 21841, 21841, bf16),
        _row_configuration("focal_label_kl 32,768 bf16", 32768, 32768, bf16),
        _row_configuration("focal_label_kl 18,432 fp32, temperature", 18432, 18432, fp32, 2.0),
        _row_configuration("focal_label_kl 100,000 bf16", 100000, 100000, bf16),
        _row_configuration("focal_label_kl 99,999 bf16", 99999, 99999, bf16),
        _row_configuration("focal_label_kl 100,000 fp16", 100000, 100000, fp16),
        _row_configuration("focal_label_kl 100,000 fp16, class weights", 100000, 100000, fp16, class_weights=True),
        _row_configuration("focal_label_kl 100,000 bf16, temperature", 100000, 100000, bf16, 2.0),
        _row_configuration("focal_label_kl 100,000 fp32", 100000, 100000, fp32),
    ]
    logits, row = torch.empty(2, 4352, dtype=bf16, device="meta"), torch.empty(2, device="meta")
    weighted = _objective(100000, class_weights=True)
    ids = weighted.neighbour_ids
    candidates = torch.empty(2, 20, dtype=torch.int64, device="meta")
    kernels = label_kl_triton
    others = [
        _configuration(
            "label_kl 4,352 bf16", kernels.label_kl_kernel, kernels.label_kl_constants(logits, candidates, ids), bf16
        ),
        _configuration(
            "label_kl 4,350 fp32",
            kernels.label_kl_kernel,
            kernels.label_kl_constants(torch.empty(2, 4350, device="meta"), candidates, ids),
            fp32,
            False,
        ),
        _configuration("mean of 8,192", kernels.reduce_kernel, kernels.reduce_constants(8192, True, True), fp32),
        _configuration("scale 4,352 bf16", kernels.scale_kernel, kernels.scale_constants(logits, row), bf16),
        _configuration("linear row loss", kernels.row_loss_kernel, kernels.row_loss_constants(weighted), fp32),
    ]
    for dtype in (bf16, fp32):
        for temperature, what in ((1.0, ""), (2.0, ", temperature")):
            constants = kernels.block_constants(dtype.itemsize, _objective(100000, temperature))
            name = f"linear, 4,096 columns, {_TYPES[dtype]}{what}"
            others.append(_configuration(f"{name}: statistics", kernels.block_statistics_kernel, constants, dtype))
            others.append(_configuration(f"{name}: gradient", kernels.block_gradient_kernel, constants, dtype))
    return [*rows, *others, *_matcher_configurations()]


def _types(kernel: triton.JITFunction, constants: dict[str, Any], dtype: torch.dtype) -> dict[str, str]:
    return {name: _parameter_type(name, dtype) for name in kernel.arg_names if name not in constants}


def _parameter_type(name: str, dtype: torch.dtype) -> str:
    if name in _FLOATS:
        return "fp32"
    if name in _INTEGERS:
        return "i32"
    if name in _LOGITS:
        return f"*{_TYPES[dtype]}"
    if name in _LABELS:
        return "*i64"
    return "*i32" if name == "neighbour_ids" else "*fp32"


def compile_configuration(configuration: Configuration, architecture: int) -> Compiled:
    """Compile as a launch with tensors from torch's allocator would specialise it: pointers at 16 bytes."""
    kernel, constants = configuration.kernel, configuration.constants
    signature = {name: configuration.types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in configuration.aligned_integers
    }
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": configuration.num_warps, **configuration.options},
    )
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage, instructions = _read_binary(cubin)
    row_loads, other_loads = _loads(ptx)
    stores = Counter(_width(vector, bits) for vector, bits in re.findall(r"st\.global[\w.:]*?(\.v\d)?\.[bf](\d+)", ptx))
    return Compiled(
        name=configuration.name,
        kernel=kernel.fn.__name__,
        architecture=architecture,
        num_warps=configuration.num_warps,
        aligned=configuration.aligned,
        registers=usage["REG"],
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        row_loads=row_loads,
        # Single numbers and corrected columns are stored one by one; whatever is a vector belongs to the row.
        row_stores={width: count for width, count in stores.items() if width > 32},
        other_loads=other_loads,
        instructions=instructions,
        cubin_bytes=len(cubin),
    )


def _width(vector: str, bits: str) -> int:
    return int(bits) * int(vector[2:] or 1) if vector else int(bits)


def _loads(ptx: str) -> tuple[dict[int, int], dict[int, int]]:
    """Loads of the row, and all others, as width in bits -> count."""
    row: Counter[int] = Counter()
    other: Counter[int] = Counter()
    for qualifiers, vector, bits in re.findall(r"ld\.global([\w.:]*?)(\.v\d)?\.[bf](\d+)", ptx):
        (row if "evict" in qualifiers or vector else other)[_width(vector, bits)] += 1
    for size in re.findall(
        r"cp\.async\.c[ag]\.shared\.global[\w.:]* *\[[^\]]*\], *\[[^\]]*\], *(0x[0-9a-fA-F]+|\d+)", ptx
    ):
        row[8 * int(size, 0)] += 1
    return dict(row), dict(other)


def _read_binary(cubin: bytes) -> tuple[dict[str, int], int]:
    """Resource usage and number of machine instructions."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        listing = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions = [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/\s+\S.*;", line)]
    return numbers, sum(" NOP" not in line for line in instructions)


def report(architectures: Iterable[int] = ARCHITECTURES) -> list[Compiled]:
    """Every configuration for every architecture."""
    return [
        compile_configuration(configuration, architecture)
        for configuration in configurations()
        for architecture in architectures
        if architecture in configuration.architectures
    ]


def _cell(widths: dict[int, int]) -> str:
    return ", ".join(f"{count} x {width}" for width, count in sorted(widths.items(), reverse=True)) or "-"


def markdown(rows: list[Compiled]) -> str:
    """The report as a table."""
    lines = [
        f"Triton {triton.__version__}. Loads and stores of the row: instructions x bits, a thread; a store appears",
        "twice where ignored rows get zeros. Instructions are those of the binary, both branches counted.",
        "",
        "| configuration | kernel | sm | warps | registers | spills (bytes) | shared (bytes) | row loads | row stores "
        "| other loads | instructions | cubin (bytes) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.name} | {row.kernel} | {row.architecture} | {row.num_warps} | {row.registers} | {row.spill_bytes} "
        f"| {row.shared_bytes} | {_cell(row.row_loads)} | {_cell(row.row_stores)} | {_cell(row.other_loads)} "
        f"| {row.instructions} | {row.cubin_bytes} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def write(rows: list[Compiled], folder: Path) -> None:
    """Write compile_report.json and compile_report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"triton": triton.__version__, "torch": torch.__version__, "kernels": [asdict(row) for row in rows]}
    (folder / "compile_report.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "compile_report.md").write_text("# Kernels, compiled ahead of time\n\n" + markdown(rows))


def main() -> None:
    """Compile, print the table, write it where asked; fail on spills and where shared memory is too small."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_report", description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities x 10")
    parser.add_argument("--output", type=Path, help="folder for compile_report.json and compile_report.md")
    arguments = parser.parse_args()
    rows = report(arguments.architectures)
    print(markdown(rows))
    if arguments.output:
        write(rows, arguments.output)
    spilling = [f"{row.name} (sm_{row.architecture})" for row in rows if row.spill_bytes]
    if spilling:
        raise SystemExit(f"spills: {', '.join(spilling)}")
    too_large = [f"{row.name} (sm_{row.architecture})" for row in rows if not row.fits]
    if too_large:
        raise SystemExit(f"more shared memory than a block may have: {', '.join(too_large)}")


if __name__ == "__main__":
    main()
