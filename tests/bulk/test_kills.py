"""Whatever ends a job, killed, without a disk, without a server: the next run ends where an undisturbed one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from repository.release import current
from serving.server import TritonServer
from tests.bulk.cheap import feed_of, products, publish_cheap
from tests.bulk.killed_jobs import content
from tests.triton_state import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish_cheap(tmp_path / "repository", "a")
    feed_of(tmp_path / "feed.parquet", products(24, refused=[3, 20, 21]))
    return tmp_path


def run_killed_jobs(folder: Path, *arguments: str) -> int:
    """Kills that had something to end. A process of its own: it forks, which the threads of this one do not survive."""
    program = [sys.executable, "-m", "tests.bulk.killed_jobs", str(folder), *arguments]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def test_killed_before_every_change_to_the_file_system(folder: Path) -> None:
    assert run_killed_jobs(folder) > 20


def test_killed_at_random_moments(folder: Path) -> None:
    """SHELFWISE_KILLS=100 for a long run."""
    kills = os.environ.get("SHELFWISE_KILLS", "6")
    assert run_killed_jobs(folder, kills) >= int(kills) // 2


def bulk(*arguments: str | Path, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which something happened before."""
    program = f"import sys; {before}; import shelfwise; sys.argv[0] = 'shelfwise'; shelfwise.app()"
    command = [sys.executable, "-c", program, "bulk", "categorize", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_full_disk_keeps_whole_parts_and_the_next_run_goes_on(folder: Path) -> None:
    job = ["--repository", folder / "repository", "--part-rows", "8"]
    feed, out, undisturbed = folder / "feed.parquet", folder / "job" / "r.parquet", folder / "undisturbed" / "r.parquet"
    assert bulk(feed, "--out", undisturbed, *job).returncode == 0
    parts = sorted(path.stat().st_size for path in undisturbed.with_name("r.parquet.parts").glob("*.parquet"))
    largest = undisturbed.stat().st_size
    assert parts[-1] < largest, "so that there is room for the parts and none for the result"
    # A limit on the size of files fails a write half-way, as a full disk does: in the last file, then in the first.
    for limit, kept in ((largest - 1, 3), (parts[0] - 1, 3), (parts[0] - 1, 0)):
        if not kept:
            shutil.rmtree(out.parent)
        failed = bulk(
            feed,
            "--out",
            out,
            *job,
            before="import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
        )
        assert failed.returncode == 1
        assert "File too large" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert not out.exists()
        assert len(list(out.with_name("r.parquet.parts").glob("*.parquet"))) == kept
    resumed = bulk(feed, "--out", out, *job)
    assert resumed.returncode == 0, resumed.stderr
    assert content(out) == content(undisturbed)


@pytest.fixture
def server(folder: Path) -> Iterator[TritonServer]:
    log = folder / "triton.log"
    running = TritonServer(current(folder / "repository"), grpc_port=0, metrics_port=0, log_file=log)
    running.start()
    yield running
    running.stop(grace_seconds=1)


def test_a_killed_server_ends_the_run_and_the_next_one_goes_on(folder: Path, server: TritonServer) -> None:
    rows = products(24, refused=[3])
    gate = folder / "gate"
    closed = [*rows[:22], replace(rows[22], title=f"gate {gate}"), *rows[23:]]
    feed = feed_of(folder / "gated.parquet", closed)
    out, undisturbed = folder / "job" / "r.parquet", folder / "undisturbed" / "r.parquet"
    options = ["--part-rows", "8", "--batch-size", "4", "--in-flight", "2"]
    command = [sys.executable, "shelfwise.py", "bulk", "categorize", str(feed), "--out", str(out)]
    command += ["--url", server.url, "--timeout", "10", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        wait_for(lambda: gate.with_suffix(".entered").exists())
        assert server.process is not None
        server.process.send_signal(signal.SIGKILL)
        _, said = running.communicate()
    assert running.returncode == 3, said
    assert "the same command goes on" in said
    assert not out.exists()
    kept = list(out.with_name("r.parquet.parts").glob("*.parquet"))
    assert len(kept) == 2, "the third block was never whole"

    gate.with_suffix(".open").touch()
    with TritonServer(current(folder / "repository"), grpc_port=0, metrics_port=0, log_file=folder / "log") as again:
        resumed = bulk(feed, "--out", out, "--url", again.url, *options)
        assert "24 of them" not in resumed.stdout
        assert f"{len(rows) - 16} of them asked about now" in resumed.stdout, resumed.stderr
        assert bulk(feed, "--out", undisturbed, "--url", again.url, *options).returncode == 0
    assert content(out) == content(undisturbed)
