"""The kernels' tables, made from their JSON files alone; a variant that could not run says why."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import Rows, markdown
from benchmarks.results import NOT_MEASURED


def _table(rows: Rows, columns: Sequence[tuple[str, str]]) -> str:
    """Case, variant and mode, the time with its spread, and the fields given as (heading, name)."""
    body = []
    for row in rows:
        measured = row["median_us"] != NOT_MEASURED
        time = f"{row['median_us']:,.1f} ({row['p20_us']:,.1f} to {row['p80_us']:,.1f})" if measured else NOT_MEASURED
        if not measured:
            time += f": {row['why']}"
        body.append([row["case"], row["variant"], row["mode"], time, *(row.get(name) for _, name in columns)])
    return markdown(["case", "variant", "mode", "µs (p20 to p80)", *(heading for heading, _ in columns)], body)


def label_kl_table(rows: Rows) -> str:
    """Kernel 1; plans that are not in use stay in the JSON file."""
    rows = [row for row in rows if not row["variant"].startswith("plan:")]
    columns = (("GB/s", "gbytes_per_s"), ("floor, µs", "floor_us"), ("% of floor", "percent_of_floor"))
    return _table(rows, (*columns, ("goal, µs", "goal_us"), ("extra MB", "extra_mbytes")))


def matcher_table(rows: Rows) -> str:
    """Kernel 2."""
    floors = (("products' floor, µs", "tensor_core_floor_us"), ("weights' floor, µs", "weight_stream_floor_us"))
    return _table(rows, (("TFLOP/s", "tflops"), *floors, ("% of floor", "percent_of_floor"), ("goal, µs", "goal_us")))


def cpu_table(rows: Rows) -> str:
    """Kernel 1's torch path on a CPU, against one log-softmax in place."""
    return _table(rows, (("log-softmaxes", "log_softmaxes"),))
