"""What the compiler makes of the kernels, without a GPU: no spills, wide accesses, one read and one write of a row."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler in this process", allow_module_level=True)

from kernels.compile_report import Compiled, Configuration, _loads, compile_configuration, configurations

CONFIGURATIONS = {configuration.name: configuration for configuration in configurations()}
PRODUCT_TAXONOMY = "focal_label_kl 4,350 in 4,352 bf16"
LONG = "focal_label_kl 100,000 bf16"
# The others differ by type or size only; `python -m kernels.compile_report` compiles them all and fails on spills.
CASES = [
    (PRODUCT_TAXONOMY, 80),
    (PRODUCT_TAXONOMY, 90),
    (PRODUCT_TAXONOMY, 100),
    (PRODUCT_TAXONOMY, 120),
    ("focal_label_kl 4,350 in 4,352 fp32", 90),
    ("focal_label_kl 4,350 in 4,352 bf16, temperature", 90),
    ("focal_label_kl 21,841 in 21,888 bf16", 90),
    ("focal_label_kl 21,841 bf16", 90),
    (LONG, 80),
    (LONG, 90),
    ("label_kl 4,352 bf16", 90),
    ("linear, 4,096 columns, bf16: gradient", 90),
]
# Each takes ten seconds.
MATCHER_CASES = [
    ("matcher, tiles of 32 tokens, weights in blocks of 64", 80),
    ("matcher, tiles of 128 tokens, weights in blocks of 64", 90),
    ("matcher, tiles of 32 tokens, weights in blocks of 32", 120),
]


def elements_of_row_loads(configuration: Configuration, compiled: Compiled) -> int:
    bits = sum(width * count for width, count in compiled.row_loads.items())
    return bits // (8 * configuration.dtype.itemsize) * 32 * configuration.num_warps


@pytest.mark.parametrize(("name", "architecture"), CASES, ids=[f"{name} sm_{sm}" for name, sm in CASES])
def test_no_spills_and_no_narrow_access_to_a_row(name: str, architecture: int) -> None:
    configuration = CONFIGURATIONS[name]
    compiled = compile_configuration(configuration, architecture)
    assert compiled.spill_bytes == 0
    assert compiled.registers * 32 * configuration.num_warps <= 65536
    assert compiled.row_loads
    # Rows that are not aligned are read in whole vectors as well; their ragged ends count as other loads.
    assert compiled.narrowest_row_access >= 64
    if name in (PRODUCT_TAXONOMY, "focal_label_kl 4,350 in 4,352 fp32"):
        assert compiled.narrowest_row_access == 128
        # One read of the row, the last tile's idle lanes included; one write, and one of zeros for ignored rows.
        width = int(configuration.constants["WIDTH"])
        assert width <= elements_of_row_loads(configuration, compiled) <= 1.1 * width
        assert compiled.row_stores == {128: 2 * compiled.row_loads[128]}


@pytest.mark.parametrize(("name", "architecture"), MATCHER_CASES, ids=[f"{name} sm_{sm}" for name, sm in MATCHER_CASES])
def test_the_matcher_fits_a_processor_without_spills(name: str, architecture: int) -> None:
    configuration = CONFIGURATIONS[name]
    compiled = compile_configuration(configuration, architecture)
    assert compiled.spill_bytes == 0
    assert compiled.registers * 32 * configuration.num_warps <= 65536
    assert compiled.fits
    # Weights come 128 bits a load; so do all blocks of tokens.
    assert compiled.row_loads[128] >= 20


def test_narrow_loads_are_told_from_wide_ones() -> None:
    row, other = _loads(
        """
        ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ], %rd2;
        @%p1 ld.global.L1::evict_first.b16 { %rs1 }, [ %rd1 + 0 ];
        cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, 0x10;
        cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, 0x4;
        ld.global.b32 { %r1 }, [ %rd1 + 0 ];
        """
    )
    assert row == {128: 2, 32: 1, 16: 1}
    assert other == {32: 1}
