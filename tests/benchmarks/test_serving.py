"""Suite serving against a real Triton: answers are checked, wrong ones found, times add up, goals judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import rival_loads, sweep, triton_statistics
from benchmarks.serving.bulk import bulk
from benchmarks.serving.correctness import difference, mistake
from benchmarks.serving.goals import goals
from benchmarks.serving.load import closed_loop
from benchmarks.serving.pipeline import Answers, Pipeline, joined
from benchmarks.serving.plans import FULL, QUICK
from benchmarks.serving.rival_servers import Rival
from benchmarks.serving.rounds import Load
from benchmarks.serving.subjects import Subject
from benchmarks.serving.targets import GrpcTarget, OwnClientTarget, TritonclientTarget
from benchmarks.serving.traffic import IN_PROCESS, TRITON, Traffic
from catalogue.product import Product
from catalogue.sample import sample_products
from client import InvalidInput
from serving.server import TritonServer


@pytest.fixture(scope="module")
def products() -> list[Product]:
    return [product for product in sample_products(40, seed=5) if product.images and product.title][:12]


@pytest.fixture(scope="module")
def expected(categorize_repository: Path, products: list[Product]) -> Answers:
    pipeline = Pipeline(categorize_repository, threads=1)
    return joined([pipeline([product.images[0]], [product.title]) for product in products])


@pytest.mark.parametrize("make", [GrpcTarget, TritonclientTarget, OwnClientTarget])
def test_the_server_answers_as_its_files_do_in_one_process(
    make: Callable[..., GrpcTarget],
    categorize_server: TritonServer,
    products: list[Product],
    expected: Answers,
):
    assert categorize_server.process is not None
    target = make("Triton", categorize_server.url, categorize_server.process.pid)
    assert mistake(target, products, expected) == ""


def test_a_batch_is_answered_row_by_row(categorize_server: TritonServer, products: list[Product], expected: Answers):
    assert categorize_server.process is not None
    target = GrpcTarget("Triton", categorize_server.url, categorize_server.process.pid)
    assert mistake(target, products, expected, batch=5) == ""
    shifted = Answers(**{name: np.roll(array, 1, axis=0) for name, array in vars(expected).items()})
    assert "products 0 to 4" in mistake(target, products, shifted, batch=5)


def test_the_breakdown_holds_every_step_and_computes_no_longer_than_callers_waited(
    categorize_server: TritonServer, categorize_repository: Path, products: list[Product]
):
    assert categorize_server.process is not None
    target = GrpcTarget("Triton", categorize_server.url, categorize_server.process.pid)
    requests = [target.prepare([product.images[0]], [product.title]) for product in products]
    before = triton_statistics.read(target.url)
    window = closed_loop(target, requests, rows=1, concurrency=1, seconds=0.5)
    after = triton_statistics.read(target.url)
    steps = triton_statistics.steps(categorize_repository)
    waited = 1e3 * float(window.latencies.mean())
    rows = triton_statistics.breakdown(before, after, steps, waited)
    assert [row["step"] for row in rows] == [*steps, "ensemble", "gRPC and client"]
    assert all(row["mean_batch"] == 1 for row in rows[: len(steps)])
    computing = [row["infer_ms"] for row in rows[: len(steps)]]
    assert all(time > 0 for time in computing)
    assert sum(computing) <= waited  # one step after the other


def test_a_stream_is_counted_and_a_row_that_fails_ends_it(categorize_server: TritonServer, products: list[Product]):
    assert bulk(categorize_server.url, products, batch=3, in_flight=2, seconds=0.3)["products_per_second"] > 0
    broken = [*products[:4], replace(products[4], images=(b"\xff\xd8\xff no image",))]
    with pytest.raises(InvalidInput, match="damaged"):
        bulk(categorize_server.url, broken, batch=3, in_flight=2, seconds=0.3)


def answers() -> Answers:
    probability = np.array([[0.5, 0.3, 0.10001, 0.10000]], np.float32)
    ids = np.array([[7, 3, 1, 2]], np.int32)
    return Answers(np.array([list("abcd")], np.object_), ids, probability, np.array([[1.5]], np.float32))


def test_equally_probable_categories_may_change_places():
    other = replace(answers(), category_id=np.array([[7, 3, 2, 1]], np.int32), category=np.array([list("abdc")]))
    assert difference(other, answers()) == ""


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"category_id": np.array([[3, 7, 1, 2]], np.int32)}, "category_id"),
        ({"category": np.array([list("bacd")], np.object_)}, "category"),
        ({"probability": np.array([[0.5, 0.3, 0.1, 0.0997]], np.float32)}, "probability"),
        ({"probability": np.array([[np.nan, 0.3, 0.1, 0.1]], np.float32)}, "probability"),
        ({"neighbour_kl": np.array([[1.49]], np.float32)}, "neighbour_kl"),
        ({"probability": np.array([[0.5, 0.3]], np.float32)}, "shape"),
    ],
)
def test_a_wrong_answer_is_found(wrong: dict[str, np.ndarray], name: str):
    assert name in difference(replace(answers(), **wrong), answers())


def load_row(server: str, client: str, concurrency: int, rate: float, p50: float) -> dict:
    return {
        "measured": "load", "server": server, "client": client, "loop": "closed", "concurrency": concurrency,
        "batch": 1, "products_per_second": rate, "p50_ms": p50, "p99_ms": 2 * p50,
    }  # fmt: skip


def test_goals_are_judged_by_what_was_measured_and_say_so_where_nothing_was():
    rows = [
        load_row(IN_PROCESS, "none", 1, 300.0, 3.0),
        load_row(TRITON, "prepared requests", 1, 250.0, 3.6),
        load_row(TRITON, "prepared requests", 8, 240.0, 30.0),
        load_row("LitServe", "prepared requests", 8, 120.0, 60.0),
    ]
    judged = {row["goal"]: row for row in goals("small", FULL["small"], rows)}
    assert judged["p50 at concurrency 1 over in-process"]["reached"]
    assert not judged["throughput at concurrency 8 over in-process"]["reached"]
    assert judged["throughput at concurrency 8 over LitServe"]["ratio"] == 2.0
    assert judged["p99 at concurrency 8 over LitServe"]["reached"]
    missing = judged["throughput at concurrency 8 over PyTriton decorators"]
    assert missing["ratio"] == "not measured"
    assert "reached" not in missing


def test_a_load_that_fails_says_why_and_has_no_figures():
    rounds = iter([{"products_per_second": 1.0}])
    load = Load({"measured": "load", "server": "Triton"}, lambda: next(rounds))
    load.measure()
    load.measure()  # the server is gone in the second round
    assert load.row() == {"measured": "load", "server": "Triton", "error": "StopIteration"}


def test_a_rival_is_started_again_every_round_and_what_fails_costs_its_rows_alone(
    monkeypatch: pytest.MonkeyPatch, categorize_server: TritonServer, products: list[Product], expected: Answers
) -> None:
    assert categorize_server.process is not None
    plan = replace(QUICK["small"], rounds=2, window=0.1, rival_concurrencies=(1, 2))
    starts: list[str] = []

    @contextmanager
    def running(rival: Rival, subject: Subject) -> Iterator[GrpcTarget]:
        starts.append(rival.name)
        if rival.name == "dies" and starts.count("dies") == 2:
            raise RuntimeError("it died")
        yield GrpcTarget(rival.name, categorize_server.url, categorize_server.process.pid)

    monkeypatch.setattr(rival_loads, "running", running)
    traffic = Traffic(replace(_named("small"), products=products), plan)
    shifted = Answers(**{name: np.roll(array, 1, axis=0) for name, array in vars(expected).items()})
    rivals = [
        rival_loads.RivalLoads(Rival(name, "none.py"), traffic, said)
        for name, said in (("lives", expected), ("dies", expected), ("lies", shifted))
    ]
    for _ in range(plan.rounds):
        for rival in rivals:
            rival.measure()
    lives, dies, lies = (rival.rows() for rival in rivals)
    assert starts == ["lives", "dies", "lies", "lives", "dies"]
    assert [row["concurrency"] for row in lives] == [1, 2]
    assert all(len(load.found) == 2 for load in rivals[0].loads)
    assert [row["error"] for row in dies] == ["it died"]
    assert lies[0]["error"].startswith("wrong: products 0")


def test_noise_is_the_spread_over_the_rounds():
    rounds = iter({"products_per_second": rate, "p50_ms": 4.0, "p90_ms": 5.0} for rate in (90.0, 100.0, 110.0))
    load = Load({"measured": "load"}, lambda: next(rounds))
    for _ in range(3):
        load.measure()
    row = load.row()
    assert row["products_per_second"] == 100.0
    assert row["noise"] == {"products_per_second": pytest.approx(0.2), "p50_ms": 0.0, "p90_ms": 0.0}


def test_the_recommended_setting_is_the_fastest_of_those_that_do_not_cost_latency():
    def row(instances: int, threads: int, delay: int, p50: float, rate: float) -> dict:
        setting = vars(sweep.Setting(instances, threads, delay))
        return setting | {"p50_at_1_ms": p50, "products_per_second_at_8": rate}

    rows = [row(1, 2, 0, 4.0, 200.0), row(2, 1, 0, 4.3, 260.0), row(2, 1, 2000, 8.0, 300.0)]
    fragment = sweep.recommendation(_named("small"), rows)["fragment"]
    assert "count: 2" in fragment
    assert 'string_value: "1"' in fragment
    assert "max_queue_delay_microseconds" not in fragment


def _named(name: str) -> Subject:
    return Subject(name, Path("unused"), Path("unused"), [])
