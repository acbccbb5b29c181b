"""Jobs that are killed while they work, and resumed; each time the result must be that of an undisturbed one.

    python -m tests.bulk.killed_jobs FOLDER 100    at random moments; without a number before every step once

FOLDER holds feed.parquet and a repository. The files are changed by the process that is killed, so that a kill falls
between any two changes; nothing but the disk is left of it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from bulk.in_process import InProcessConnection
from bulk.job import Job, run_with_client
from catalogue.feed import open_feed
from client import ShelfwiseClient
from repository.release import current
from tests.repository.marked_releases import Killer

PART_ROWS = 16
pa.array([0])  # has pandas imported, where it is there, once and not in every child


class WriteKiller(Killer):
    """Counts of what is opened only what is opened to be written: imports open files, too."""

    def __call__(self, event: str, arguments: object) -> None:
        if event != "open" or (isinstance(arguments, tuple) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            super().__call__(event, arguments)


def work(folder: Path, out: Path) -> int:
    """Does the job; the rows that were asked about."""
    job = Job(open_feed(folder / "feed.parquet"), "categorize", out, part_rows=PART_ROWS)
    with ShelfwiseClient(InProcessConnection(current(folder / "repository"), "categorize")) as client:
        return run_with_client(job, client, batch_size=8, in_flight=2).asked


def in_child(function: Callable[[], object]) -> int:
    """The process id of a child that calls a function and exits; its status is 1 where that raises."""
    child = os.fork()
    if not child:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(out: Path) -> tuple[bytes, bytes]:
    """Result and rejects."""
    return out.read_bytes(), out.with_suffix(".rejects.jsonl").read_bytes()


class Jobs:
    """Jobs on one feed, each into a folder of its own, beside one that nobody disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "job" / "result.parquet"
        undisturbed = folder / "undisturbed" / "result.parquet"
        begin = time.monotonic()
        assert status_of(in_child(lambda: work(folder, undisturbed))) == 0
        self.seconds = time.monotonic() - begin
        self.wanted = content(undisturbed)
        self.asked = self.in_parts(undisturbed)

    def begin(self, before: Callable[[], object] = lambda: None) -> int:
        """A child at work."""
        return in_child(lambda: (before(), work(self.folder, self.out)))

    def in_parts(self, out: Path) -> int:
        """Rows of the parts that a manifest lists."""
        manifest = out.with_name(f"{out.name}.parts") / "manifest.json"
        return sum(part["rows"] for part in json.loads(manifest.read_text())["parts"]) if manifest.exists() else 0

    def check_resumed(self) -> None:
        """What was killed leaves no half result; going on gives the undisturbed one, and asks about no row twice."""
        if self.out.exists():
            assert self.out.read_bytes() == self.wanted[0], "a result that is not whole"
        kept = self.in_parts(self.out)
        counted = self.folder / "asked"
        assert status_of(in_child(lambda: counted.write_text(str(work(self.folder, self.out))))) == 0
        assert content(self.out) == self.wanted
        assert int(counted.read_text()) == self.asked - kept, "rows asked about twice, or not at all"
        parts = {path.name for path in self.out.with_name(f"{self.out.name}.parts").iterdir()}
        assert len(parts) == -(-self.asked // PART_ROWS) + 2, f"rubbish: {parts}"
        left = {path.name for path in self.out.parent.iterdir()}
        assert left == {"result.parquet", "result.rejects.jsonl", "result.parquet.parts"}, f"rubbish: {left}"
        shutil.rmtree(self.out.parent)


def kill_at_random(jobs: Jobs, kills: int) -> int:
    """Kills that many jobs; how many of them had not ended."""
    chance = random.Random(0)
    hit = 0
    for _ in range(kills):
        child = jobs.begin()
        time.sleep(chance.uniform(0, jobs.seconds))
        os.kill(child, signal.SIGKILL)
        hit += status_of(child) != 0
        jobs.check_resumed()
    return hit


def kill_at_every_step(jobs: Jobs) -> int:
    """Kills jobs before the first, second … change to the file system; how many there are."""
    for step in itertools.count():
        status = status_of(jobs.begin(lambda step=step: sys.addaudithook(WriteKiller(step))))  # type: ignore[misc]
        jobs.check_resumed()
        if status == 0:
            return step
        assert status == -signal.SIGKILL, status
    raise AssertionError


if __name__ == "__main__":
    prepared = Jobs(Path(sys.argv[1]))
    print(kill_at_random(prepared, int(sys.argv[2])) if sys.argv[2:] else kill_at_every_step(prepared))
