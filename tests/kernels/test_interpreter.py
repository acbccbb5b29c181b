"""Runs the tests of the kernels in Triton's interpreter: processes of their own, the choice is made at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["test_label_kl_triton.py", "test_matcher_triton.py"])
def test_kernels_in_the_interpreter(name: str) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / name)],
        cwd=HERE.parents[1],
        # Rows are small: one thread is faster than two that wait for each other on a busy machine.
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
