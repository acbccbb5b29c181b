"""The command line, the READMEs' tables, and the fits of growth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import run, tables
from benchmarks.growth.growth import exponents, slope
from benchmarks.isolated import in_own_process
from benchmarks.training.throughput import check_losses, extrapolation

RUN = Path(run.__file__)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)


def test_the_pages_have_the_tables_of_the_results():
    pages = [page.read_text(encoding="utf-8") for page in tables.PAGES]
    for name in tables.page_tables():
        assert sum(f"<!-- table {name} -->" in page for page in pages) == 1
    for page in pages:
        assert tables.filled(page) == page, "run `python benchmarks/run.py tables`"


def test_a_table_is_replaced_between_its_markers_alone(tmp_path: Path):
    text = "before\n<!-- table growth -->\nold\n<!-- end growth -->\nafter\n"
    assert tables.filled(text, tmp_path) == text.replace("old", "not measured")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table nonsense -->\n<!-- end nonsense -->", "'nonsense'"),
        ("<!-- table growth -->\n", "lacks its end"),
    ],
)
def test_markers_that_mean_nothing_are_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        tables.filled(text, tmp_path)


def test_a_module_of_a_suite_that_is_not_there_is_refused_with_those_that_are():
    result = command("quality", "--suite", "nonsense")
    assert result.returncode == 2
    assert "shapes" in result.stderr


def test_a_suite_without_its_dependencies_says_so_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_absent\n")
    (tmp_path / "breaks.py").write_text("def main(quick, output):\n    raise RuntimeError('no luck')\n")
    (tmp_path / "works.py").write_text("def main(quick, output):\n    (output / 'done').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run, "SUITES", {name: (f"{name}",) for name in ("needs_more", "breaks", "works")})
    monkeypatch.setattr(sys, "argv", ["run.py", "all", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert "needs_more needs a_package_that_is_absent, which is not installed: pip install" in str(stopped.value)
    assert "breaks failed: RuntimeError: no luck" in str(stopped.value)
    assert (tmp_path / "done").exists()


def test_only_the_named_module_of_a_suite_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("one_module", "other_module"):
        (tmp_path / f"{name}.py").write_text(f"def main(quick, output):\n    (output / '{name}').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run, "SUITES", {"pair": ("one_module", "other_module")})
    assert run.run_suite("pair", "other_module", quick=True, output=tmp_path) == []
    assert not (tmp_path / "one_module").exists()
    assert (tmp_path / "other_module").exists()


def test_a_fitted_exponent_is_that_of_the_power_law():
    assert slope([(size, 3e-6 * size**1.7) for size in (10, 100, 1000)]) == pytest.approx(1.7)


def test_exponents_of_the_last_step_leave_out_what_does_not_grow():
    rows = [{"size": size, "seconds": 1.0 + 1e-4 * size**2, "memory_mb": 0.5} for size in (1, 1_000, 100_000)]
    found = exponents("what", "rows", rows)
    assert found["time_exponent"] < 1.9
    assert found["time_exponent_of_the_last_step"] == pytest.approx(2.0, abs=0.01)
    assert "memory_exponent" not in found


def test_the_scaling_law_extrapolates_what_is_linear_in_classes():
    found = extrapolation([(classes, 1e-6 + 2e-9 * classes) for classes in (100, 1000, 10_000)])
    assert found["extrapolated_seconds"] == pytest.approx(12_000_000 * (1e-6 + 2e-9 * 4350))
    assert found["worst_misfit"] < 1e-6


def test_the_head_is_timed_with_two_losses_that_are_the_same():
    check_losses()


def allocate(megabytes: int) -> int:
    return len(bytearray(b"x") * (megabytes * 1_000_000))


def test_peak_memory_is_that_of_the_call_alone():
    held = bytearray(b"x") * 300_000_000  # of this process: none of the call's business
    for megabytes in (0, 200):
        size, peak = in_own_process(allocate, megabytes)
        assert size == megabytes * 1_000_000
        assert size <= peak + 1_000_000
        assert peak < size + 50_000_000
    assert held
