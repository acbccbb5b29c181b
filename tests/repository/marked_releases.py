"""Small releases whose parts say which ensemble and release they are of, and commands that are killed while publishing.

python -m tests.repository.marked_releases FOLDER 1000     kills at random moments; without a number at every step once

Processes of their own: they fork, which the threads of a test process do not survive.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

from repository.configs import RepositoryError
from repository.publish import LOCK_FILE, publish, rollback, staging
from repository.release import Release, current

EVENTS = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree", "open")
ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling {
  step { model_name: "shared" model_version: -1 }
  step { model_name: "own_%s" model_version: -1 }
}
"""


def publish_marked(repository: Path, *ensembles: str, mark: str, shared: str = "same") -> int:
    """The next release, with ensembles whose own step, labels and readiness requests bear a mark; its number."""
    with staging(repository) as staged:
        for ensemble in ensembles:
            for model, files in (
                ("shared", {"config.pbtxt": "", "1/model.onnx": shared}),
                (f"own_{ensemble}", {"config.pbtxt": "max_batch_size: 1", "1/model.onnx": mark * 1000}),
                (ensemble, {"config.pbtxt": ENSEMBLE % ensemble, "1/.gitkeep": "", "labels.txt": mark}),
            ):
                for name, content in files.items():
                    path = staged / model / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content)
        return publish(repository, staged, {ensemble: {"mark": mark} for ensemble in ensembles}).number


def check_whole(repository: Path) -> None:
    """The current release is as it was published, and all its parts bear their ensemble's mark."""
    release = Release.load(current(repository))
    release.verify()
    for ensemble, about in release.ensembles.items():
        own = release.folder / f"own_{ensemble}" / str(release.version(f"own_{ensemble}")) / "model.onnx"
        assert own.read_text() == about["mark"] * 1000
        assert (release.folder / ensemble / "labels.txt").read_text() == about["mark"]


def work_without_end(repository: Path) -> None:
    for count in itertools.count():
        publish_marked(repository, "ab"[count % 2], mark=f"{count}.")
        if count % 3 == 2:
            with contextlib.suppress(RepositoryError):  # none before: a killed command's was removed
                rollback(repository)


def kill_at_random(repository: Path, kills: int) -> None:
    """Kills commands at work; each time there is a whole release, the next command goes on, and no rubbish stays."""
    chance = random.Random(0)
    publish_marked(repository, "a", mark="first")
    for _ in range(kills):
        child = os.fork()
        if not child:
            work_without_end(repository)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check_whole(repository)
        publish_marked(repository, "b", mark="next")
        check_whole(repository)
        hidden = {path.name for path in repository.glob(".*")}
        assert hidden == {LOCK_FILE}, hidden


class Killer:
    """Kills this process when it is about to change the file system for the N-th time."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, event: str, _: object) -> None:
        if event in EVENTS:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def kill_at_every_step(repository: Path) -> int:
    """Publishes again and again, killed before the first, second … change to the file system; how many there are."""
    for mark in "xyz":
        publish_marked(repository, "a", mark=mark)
    for step in itertools.count():
        child = os.fork()
        if not child:
            sys.addaudithook(Killer(step))
            publish_marked(repository, "b", mark=f"{step}.")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check_whole(repository)
        if status == 0:
            return step
        assert status == -signal.SIGKILL, status
    raise AssertionError


if __name__ == "__main__":
    if sys.argv[2:]:
        kill_at_random(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        print(kill_at_every_step(Path(sys.argv[1])))
