"""A measurement in a process of its own: its peak memory is its own, and what it leaves behind ends with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
PROCESS = Path("/proc/self")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> tuple[Result, int]:
    """Calls a function of a module in a fresh interpreter.

    Returns:
        What it returned, and how many bytes its peak resident memory was above that at the start of the call.

    Raises:
        Exception: what the function raised; BrokenProcessPool when its process was killed (for memory, say).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_call, function, arguments).result()


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> tuple[Result, int]:
    (PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten: proc(5)
    before = _memory("VmRSS")
    result = function(*arguments)
    return result, max(0, _memory("VmHWM") - before)


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
