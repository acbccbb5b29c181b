"""A measurement in a process of its own: its peak memory is its own, and what it leaves behind ends with it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> tuple[Result, int]:
    """Calls a function of a module in a fresh interpreter.

    Returns:
        What it returned, and how many bytes its peak resident memory grew by during the call.

    Raises:
        Exception: what the function raised; BrokenProcessPool when its process was killed (for memory, say).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_call, function, arguments).result()


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> tuple[Result, int]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = function(*arguments)
    return result, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
