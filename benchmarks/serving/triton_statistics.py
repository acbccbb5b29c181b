"""Where a request's time goes: Triton's own statistics, a step of the ensemble at a time.

Triton adds up, for every model, how long requests waited (queue), how long their tensors took in and out of the
backend (input, output) and how long it computed (infer). What the ensemble's requests took beyond the sum of its steps
is the cost of the ensemble itself; what a caller waited beyond that is gRPC and the client. A step gives its tensors
back while the next one starts already, so the parts can add up to a little more than the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import InferenceServerClient

from repository.configs import read_config, step_names
from repository.release import current

PARTS = {"queue": "queue", "input": "compute_input", "infer": "compute_infer", "output": "compute_output"}
ENSEMBLE = "categorize"


@dataclass(frozen=True)
class Totals:
    """What a model has done so far: requests, batches that were computed, nanoseconds in each part and in all."""

    requests: int
    batches: int
    nanoseconds: dict[str, int]
    whole: int


def read(url: str) -> dict[str, Totals]:
    """The statistics of every model of a server."""
    client = InferenceServerClient(url)
    try:
        models = client.get_inference_statistics().model_stats
    finally:
        client.close()
    totals = {}
    for model in models:
        statistics = model.inference_stats
        parts = {part: getattr(statistics, field).ns for part, field in PARTS.items()}
        totals[model.name] = Totals(statistics.success.count, model.execution_count, parts, statistics.success.ns)
    return totals


def steps(repository: Path, ensemble: str = ENSEMBLE) -> list[str]:
    """The models behind an ensemble, in order."""
    return step_names(read_config(ensemble, current(repository)))


def breakdown(
    before: dict[str, Totals],
    after: dict[str, Totals],
    order: list[str],
    caller_ms: float,
    ensemble: str = ENSEMBLE,
) -> list[dict[str, float | str]]:
    """Milliseconds of a mean request in every step between two readings, then in what surrounds the steps.

    Args:
        before, after: from `read`.
        order: the steps, from `steps`.
        caller_ms: what callers waited, on average.
        ensemble: which one they asked.

    Returns:
        A row a step: step, queue_ms, input_ms, infer_ms, output_ms, mean_batch; then the rows "ensemble" and
        "gRPC and client" with their `other_ms`.

    Raises:
        ValueError: no request was answered in between.
    """
    requests = after[ensemble].requests - before[ensemble].requests
    if requests < 1:
        raise ValueError("no request was answered between the two readings")
    rows: list[dict[str, float | str]] = []
    inside = 0.0
    for step in order:
        then, now = before[step], after[step]
        parts = {f"{part}_ms": (now.nanoseconds[part] - then.nanoseconds[part]) / requests / 1e6 for part in PARTS}
        batches = max(1, now.batches - then.batches)
        rows.append({"step": step, **parts, "mean_batch": (now.requests - then.requests) / batches})
        inside += (now.whole - then.whole) / requests / 1e6
    whole = (after[ensemble].whole - before[ensemble].whole) / requests / 1e6
    rows.append({"step": "ensemble", "other_ms": max(0.0, whole - inside)})
    rows.append({"step": "gRPC and client", "other_ms": max(0.0, caller_ms - whole)})
    return rows
