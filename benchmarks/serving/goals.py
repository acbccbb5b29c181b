"""The serving goals, judged by what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.results import NOT_MEASURED
from benchmarks.serving.plans import Plan
from benchmarks.serving.rival_servers import rivals_of
from benchmarks.serving.rounds import Row
from benchmarks.serving.traffic import BULK, IN_PROCESS, NO_CLIENT, OWN_CLIENT, PERF_ANALYZER, PREPARED, TRITON


def goals(name: str, plan: Plan, rows: Sequence[Row]) -> Iterator[Row]:
    """The serving goals against what was measured; a goal whose rows are missing is not measured."""
    closed_rows = {
        (row["server"], row["client"], row["concurrency"], row["batch"]): row
        for row in rows
        if row.get("loop") == "closed" and "error" not in row
    }

    def of(server: str, concurrency: int, measure: str, client: str = PREPARED, batch: int = 1) -> float | None:
        row = closed_rows.get((server, client, concurrency, batch))
        value = row[measure] if row else None
        return value if isinstance(value, float) else None

    def goal(text: str, value: float | None, base: float | None, limit: float) -> Row:
        at_most = not text.startswith("throughput")
        sign = "≤" if at_most else "≥"
        found: Row = {"measured": "goal", "subject": name, "goal": text, "limit": f"{sign} {limit:g}"}
        found["ratio"] = NOT_MEASURED
        if value is not None and base:
            ratio = value / base
            found |= {"ratio": ratio, "reached": ratio <= limit if at_most else ratio >= limit}
        return found

    limit_p50 = of(IN_PROCESS, 1, "p50_ms", NO_CLIENT)
    limit_rate = of(IN_PROCESS, 1, "products_per_second", NO_CLIENT)
    own_rate, own_p99 = of(TRITON, 8, "products_per_second"), of(TRITON, 8, "p99_ms")
    yield goal("p50 at concurrency 1 over in-process", of(TRITON, 1, "p50_ms"), limit_p50, plan.p50_goal)
    yield goal("throughput at concurrency 8 over in-process", own_rate, limit_rate, plan.throughput_goal)
    for rival in rivals_of(name):
        rate, p99 = of(rival.name, 8, "products_per_second"), of(rival.name, 8, "p99_ms")
        yield goal(f"throughput at concurrency 8 over {rival.name}", own_rate, rate, 1.3)
        yield goal(f"p99 at concurrency 8 over {rival.name}", own_p99, p99, 1.0)
    overhead = next((row.get("ratio") for row in rows if row["measured"] == "client overhead"), None)
    yield goal("p50 at concurrency 1, ShelfwiseClient over tritonclient", overhead, 1.0, 1.03)
    batch, in_flight = plan.bulk
    for client, concurrency, rows_a_request in (
        *((OWN_CLIENT, concurrency, 1) for concurrency in plan.client_concurrencies),
        (BULK, in_flight, batch),
    ):
        rate, other = (
            of(TRITON, concurrency, "products_per_second", name, rows_a_request) for name in (client, PERF_ANALYZER)
        )
        load = f"concurrency {concurrency}" + (f" and {rows_a_request} rows a request" if rows_a_request > 1 else "")
        yield goal(f"throughput at {load}, {client} over perf_analyzer", rate, other, 0.9)
