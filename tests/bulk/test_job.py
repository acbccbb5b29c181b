"""Each row once: grown, changed and shuffled feeds, other models and jobs, rejects, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from typer.testing import CliRunner

import shelfwise
from bulk.in_process import InProcessConnection
from bulk.job import Job, Progress, run_with_client
from bulk.parts import BulkError
from catalogue.feed import open_feed
from catalogue.product import Product
from client import ShelfwiseClient
from repository.release import current
from serving.server import TritonServer
from tests.bulk.cheap import expected, feed_of, products, publish_cheap

PART_ROWS = 8


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_cheap(tmp_path / "repository", "a")
    return tmp_path / "repository"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "r.parquet"


def answer(feed: Path, out: Path, repository: Path, **more: Any) -> Progress:
    """Does the job in this process."""
    job = Job(open_feed(feed, question=True), "categorize", out, part_rows=PART_ROWS, **more)
    with ShelfwiseClient(InProcessConnection(current(repository), "categorize")) as client:
        return run_with_client(job, client, batch_size=4, in_flight=2)


def check(out: Path, given: list[Product], *, letter: str = "a") -> None:
    """The result has every product once, in the order of the feed, with the answer that is its own."""
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [product.id for product in given]
    assert table["category"].to_pylist() == [expected(letter, product) for product in given]


def rejects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".rejects.jsonl").read_text().splitlines()]


def test_every_product_is_answered_once_and_in_order(tmp_path: Path, repository: Path, out: Path) -> None:
    given = products(29)
    done = answer(feed_of(tmp_path / "feed.parquet", given), out, repository)
    assert (done.rows, done.asked, done.rejected) == (29, 29, 0)
    check(out, given)
    assert pq.read_table(out)["probability"].type == pa.float32()
    assert rejects(out) == []


def test_rows_that_cannot_be_answered_are_in_a_file_of_their_own(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = tmp_path / "feed.csv"
    feed.write_text("id,title,images\na,one,\na,again,\n,no id,\nb,refuse,\nc,two,\nd,,\ne,three,gone.jpg\n")
    done = answer(feed, out, repository)
    assert (done.rows, done.rejected) == (7, 5)
    assert pq.read_table(out)["id"].to_pylist() == ["a", "c"]
    found = rejects(out)
    assert [row["reason"] for row in found] == [
        "duplicate id",
        "missing id",
        "refused",
        "refused",
        "missing image file",
    ]
    assert "row 2" in found[0]["error"]
    assert found[2] == {"id": "b", "reason": "refused", "error": "row 0 is refused"}
    assert "both empty" in found[3]["error"]
    assert answer(feed, out, repository).asked == 0, "a refusal is an answer, too"


def test_ids_that_repeat_across_the_parts_of_a_feed_are_rejected(tmp_path: Path, repository: Path, out: Path) -> None:
    (folder := tmp_path / "feed").mkdir()
    first, second = products(10), products(10, first=9)
    feed_of(folder / "1.parquet", first)
    feed_of(folder / "2.parquet", second)
    answer(folder, out, repository)
    check(out, [*first, *second[1:]])
    assert [row["reason"] for row in rejects(out)] == ["duplicate id"]


def test_a_grown_feed_costs_its_new_rows(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = tmp_path / "feed.parquet"
    answer(feed_of(feed, products(21)), out, repository)
    done = answer(feed_of(feed, products(43)), out, repository)
    assert (done.rows, done.asked) == (43, 22)
    check(out, products(43))
    fresh = out.with_name("fresh.parquet")
    answer(feed, fresh, repository)
    assert out.read_bytes() == fresh.read_bytes()


def test_a_changed_feed_is_noticed_and_costs_its_changed_rows_alone(
    tmp_path: Path, repository: Path, out: Path
) -> None:
    feed = tmp_path / "feed.parquet"
    given = products(30, refused=[5])
    answer(feed_of(feed, given), out, repository)
    before = out.read_bytes()
    given[12] = replace(given[12], title="another title")
    with pytest.raises(BulkError, match=r"row 13 \(id p00012\) is not the one that it was"):
        answer(feed_of(feed, given), out, repository)
    given = [*reversed(given[:20]), *given[22:], *products(3, first=100)]
    with pytest.raises(BulkError, match=r"has changed since the last run: row 1 .*--only-changed.*--anew"):
        answer(feed_of(feed, given), out, repository)
    assert out.read_bytes() == before
    done = answer(feed, out, repository, only_changed=True)
    assert done.asked == 4
    answered = [product for product in given if product.title != "refuse"]
    check(out, answered)
    assert [row["id"] for row in rejects(out)] == ["p00005"]
    fresh = out.with_name("fresh.parquet")
    answer(feed, fresh, repository)
    assert out.read_bytes() == fresh.read_bytes()


def test_a_feed_that_lost_rows_is_noticed(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = tmp_path / "feed.parquet"
    answer(feed_of(feed, products(30)), out, repository)
    for left in (29, 24, 5):
        with pytest.raises(BulkError, match=f"it ends after {left} rows"):
            answer(feed_of(feed, products(left)), out, repository)
    done = answer(feed, out, repository, only_changed=True)
    assert done.asked == 0
    check(out, products(5))


def test_a_feed_that_changes_under_a_running_job_is_noticed(tmp_path: Path, repository: Path, out: Path) -> None:
    given = products(30)
    feed = feed_of(tmp_path / "feed.parquet", given)
    job = Job(open_feed(feed), "categorize", out, part_rows=PART_ROWS)

    def change(done: Progress) -> None:
        if done.rows == 2 * PART_ROWS and not done.under_way:
            feed_of(feed, products(31))

    with ShelfwiseClient(InProcessConnection(current(repository), "categorize")) as client:
        with pytest.raises(BulkError, match="changed while it was read"):
            run_with_client(job, client, change, batch_size=4, in_flight=2)
    assert not out.exists()
    done = answer(feed, out, repository)
    assert done.asked == 31 - 2 * PART_ROWS
    check(out, products(31))


def test_another_model_is_noticed_and_never_mixed_in(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(20))
    answer(feed, out, repository)
    publish_cheap(repository, "b")
    with pytest.raises(BulkError, match=r"was answered by model \w{12}, now \w{12} answers.*--anew"):
        answer(feed, out, repository, only_changed=True)
    check(out, products(20), letter="a")
    done = answer(feed, out, repository, anew=True)
    assert done.asked == 20
    check(out, products(20), letter="b")


def test_the_same_model_in_another_release_goes_on(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(20))
    answer(feed, out, repository)
    publish_cheap(tmp_path / "elsewhere", "b")
    publish_cheap(tmp_path / "elsewhere", "a")
    assert answer(feed, out, tmp_path / "elsewhere").asked == 0


def test_a_model_that_is_replaced_under_a_running_job_is_noticed(tmp_path: Path, repository: Path, out: Path) -> None:
    """Two servers take the place of one after the other; the client knows both."""
    publish_cheap(tmp_path / "new", "b")
    feed = feed_of(tmp_path / "feed.parquet", products(40))
    old = TritonServer(current(repository), grpc_port=0, metrics_port=0, log_file=tmp_path / "old.log")
    old.start()
    port = int(old.url.rpartition(":")[2])
    servers = [old]

    def replace_server(done: Progress) -> None:
        if done.rows == PART_ROWS and not done.under_way:
            old.stop(grace_seconds=1)
            new = TritonServer(current(tmp_path / "new"), grpc_port=port, metrics_port=0, log_file=tmp_path / "new.log")
            new.start()
            servers.append(new)

    try:
        with ShelfwiseClient(old.url, timeout=60) as client:
            job = Job(open_feed(feed), "categorize", out, part_rows=PART_ROWS)
            with pytest.raises(BulkError, match=r"model \w{12} answers since this run began with \w{12}"):
                run_with_client(job, client, replace_server, batch_size=4, in_flight=2)
    finally:
        for server in servers:
            server.stop(grace_seconds=1)
    assert not out.exists()
    assert answer(feed, out, repository).asked == 40 - PART_ROWS
    check(out, products(40), letter="a")


def test_servers_of_different_models_are_refused(tmp_path: Path, repository: Path, out: Path) -> None:
    publish_cheap(tmp_path / "other", "b")
    job = Job(open_feed(feed_of(tmp_path / "feed.parquet", products(3))), "categorize", out)
    connections = [InProcessConnection(current(folder), "categorize") for folder in (repository, tmp_path / "other")]
    with ShelfwiseClient(connections) as client, pytest.raises(BulkError, match="answer by different models"):
        run_with_client(job, client)


def test_results_of_another_job_and_foreign_files_are_refused(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(10))
    answer(feed, out, repository)
    with pytest.raises(BulkError, match=r"another job's: \{'k': 1\}, now \{'k': 2\}"):
        answer(feed, out, repository, k=2)
    foreign = tmp_path / "foreign.parquet"
    foreign.write_bytes(b"something of somebody")
    with pytest.raises(BulkError, match="no job's that could go on"):
        answer(feed, foreign, repository)
    assert foreign.read_bytes() == b"something of somebody"
    with pytest.raises(BulkError, match="part of the feed"):
        answer(feed, feed, repository, anew=True)
    with pytest.raises(BulkError, match=r"written as \.parquet"):
        answer(feed, tmp_path / "result.csv", repository)
    with pytest.raises(ValueError, match="no system 'search' answers"):
        Job(open_feed(feed), "search", out).results("model")


def test_damaged_parts_are_noticed(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(10))
    answer(feed, out, repository)
    part = next(out.with_name("r.parquet.parts").glob("000000-*.parquet"))
    whole = part.read_bytes()
    place = whole.index(b"PAR1") + 40  # in the first page
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(BulkError, match="is damaged"):
        answer(feed_of(feed, products(12)), out, repository)
    part.unlink()
    with pytest.raises(BulkError, match="lacks 000000"):
        answer(feed, out, repository)


def test_one_job_at_a_time_writes_a_result(tmp_path: Path, repository: Path, out: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(3))
    answer(feed, out, repository)
    with FileLock(out.with_name("r.parquet.parts") / ".lock"):
        with pytest.raises(BulkError, match="another job is writing"):
            answer(feed, out, repository)


def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path: Path, repository: Path) -> None:
    feed = feed_of(tmp_path / "feed.parquet", products(10, refused=[4]))
    out = tmp_path / "r.parquet"
    command = ["bulk", "categorize", str(feed), "--out"]
    chosen = ["--repository", str(repository)]
    done = CliRunner().invoke(shelfwise.app, [*command, str(out), *chosen])
    assert done.exit_code == 0, done.output
    assert "9 products answered, 10 of them asked about now" in done.output
    assert "1 rows without an answer" in done.output
    for arguments, status, sentence in (
        ([str(feed / "r.parquet"), *chosen], 1, "Not a directory"),
        ([str(tmp_path / "s.parquet"), "--url", "127.0.0.1:9", "--timeout", "0.5"], 3, "127.0.0.1:9"),
        ([str(tmp_path / "s.parquet"), *chosen, "--url", "127.0.0.1:9"], 2, "not both"),
        ([str(tmp_path / "s.parquet"), "--release", "1"], 2, "need --repository"),
        ([str(tmp_path / "s.parquet"), *chosen, "--release", "7"], 1, "release.json is missing"),
    ):
        failed = CliRunner().invoke(shelfwise.app, [*command, *arguments])
        assert failed.exit_code == status, failed.output
        assert sentence in failed.output
        assert "Traceback" not in failed.output
