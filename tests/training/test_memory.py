"""Freed memory stays with the process: counted by the pages that the kernel has to give it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TENSORS = 50
PAGES = 64 * 2**20 // 4096
FAULTS = """
import resource, torch
from training.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
torch.ones(2**24)  # what comes once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({tensors}):
    torch.ones(2**24)  # 64 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    """Pages that a process asks the kernel for while it makes and frees `TENSORS` tensors."""
    code = FAULTS.format(keep=keep, tensors=TENSORS)
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_freed_tensors_pages_serve_the_next_one() -> None:
    assert faults(keep=False) > TENSORS * PAGES / 2, "nothing to gain here"
    assert faults(keep=True) < TENSORS * PAGES / 4
