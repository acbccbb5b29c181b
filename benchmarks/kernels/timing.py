"""How kernels are timed and kept: CUDA events around one call, its replay from a CUDA graph, a row a figure.

Every call comes after a read of a buffer larger than L2, with inputs in rotation. A file of results is written where
there is a figure for it, in a folder named after the GPU (results/h200/label_kl.json): without a GPU there is none, and
the page says "not measured" because of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import NOT_MEASURED, write

FLUSH_BYTES = 512 * 2**20
INSTALL = {"liger_kernel": "liger-kernel", "cut_cross_entropy": "cut-cross-entropy"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds a call."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, microseconds: Iterable[float]) -> Timing:
        """Median, p20 and p80 of repetitions."""
        times = sorted(microseconds)
        return cls(times[len(times) // 2], times[len(times) // 5], times[len(times) * 4 // 5])

    def row(self, case: str, variant: str, mode: str) -> Row:
        """What every row of the tables and of the JSON files has."""
        return {
            "case": case,
            "variant": variant,
            "mode": mode,
            "median_us": round(self.median, 2),
            "p20_us": round(self.p20, 2),
            "p80_us": round(self.p80, 2),
            "noise": {"median_us": round((self.p80 - self.p20) / self.median, 4)},
        }


def not_measured(case: str, variant: str, mode: str, why: str) -> Row:
    """A row without a figure beside others that have one, and why."""
    return {"case": case, "variant": variant, "mode": mode, "median_us": NOT_MEASURED, "why": why}


def reason(error: Exception) -> str:
    """Why a variant has no figure, in a line."""
    if isinstance(error, ImportError):
        package = INSTALL.get((error.name or "").split(".")[0], error.name)
        return f"not installed: pip install {package}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def time_calls(calls: list[Callable[[], Any]], repetitions: int) -> Timing:
    """Time the calls in rotation, each after a read that empties L2 and leaves nothing in it to be written back."""
    flush = torch.ones(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    for call in [*calls, *calls]:
        call()
    events = []
    for repetition in range(repetitions):
        flush.sum()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[repetition % len(calls)]()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return Timing.of(1000 * start.elapsed_time(end) for start, end in events)


def graph_of(call: Callable[[], Any]) -> Callable[[], Any]:
    """Capture the call in a CUDA graph; its results live in the graph's memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(kept: Any = kept) -> None:
        graph.replay()

    return replay


def gpu_folder(output: Path, gpu: str) -> Path:
    """Where a GPU's results go: "NVIDIA H200" -> h200, "NVIDIA H100 80GB HBM3" -> h100."""
    words = gpu.lower().removeprefix("nvidia ").split()
    model = next((index for index, word in enumerate(words) if any(map(str.isdigit, word))), len(words) - 1)
    return output / "-".join(words[: model + 1])


def write_measured(name: str, rows: list[Row], packages: Iterable[str], folder: Path) -> Path | None:
    """Write the rows as JSON, unless none of them has a figure."""
    if all(row["median_us"] == NOT_MEASURED for row in rows):
        return None
    return write(name, rows, packages, folder)
