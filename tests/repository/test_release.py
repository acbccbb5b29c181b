"""Releases: whole and digested, published by one flip; two at once, killed anywhere, a full disk, a flipped byte."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

import shelfwise
from repository.configs import RepositoryError, model_configs, read_config
from repository.publish import KEPT_RELEASES, LOCK_FILE, publish, rollback, staging
from repository.release import Release, current, release_numbers
from tests.repository.marked_releases import check_whole, publish_marked

ROOT = Path(shelfwise.__file__).parent


def served(repository: Path) -> Release:
    return Release.load(current(repository))


def test_a_release_holds_the_systems_of_the_one_before_as_hard_links(tmp_path: Path) -> None:
    assert publish_marked(tmp_path, "a", mark="x") == 1
    assert publish_marked(tmp_path, "b", mark="y") == 2
    release = served(tmp_path)
    release.verify()
    assert set(release.ensembles) == {"a", "b"}
    assert {config.name for config in model_configs(release.folder)} == {"a", "b", "shared", "own_a", "own_b"}
    assert {name: release.version(name) for name in ("shared", "own_a", "a", "own_b", "b")} == {
        "shared": 1,
        "own_a": 1,
        "a": 1,  # what is equal keeps its version
        "own_b": 2,
        "b": 2,
    }
    weights = Path("own_a", "1", "model.onnx")
    assert (tmp_path / "1" / weights).samefile(tmp_path / "2" / weights)
    assert (release.folder / "a" / "labels.txt").read_text() == "x"


def test_an_ensemble_wants_the_steps_that_it_was_published_with(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "a", mark="y")
    config = read_config("a", served(tmp_path).folder)
    assert [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step] == [
        ("shared", 1),
        ("own_a", 2),
    ]
    assert [path.name for path in (tmp_path / "2" / "own_a").iterdir() if path.is_dir()] == ["2"]


def test_a_step_that_differs_stays_what_it_is_for_the_other_ensemble(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "b", mark="y", shared="another")
    folder = served(tmp_path).folder
    assert (folder / "shared" / "1" / "model.onnx").read_text() == "same"
    assert (folder / "b_shared" / "2" / "model.onnx").read_text() == "another"
    assert [step.model_name for step in read_config("a", folder).ensemble_scheduling.step] == ["shared", "own_a"]
    assert [step.model_name for step in read_config("b", folder).ensemble_scheduling.step] == ["b_shared", "own_b"]
    publish_marked(tmp_path, "b", mark="z")  # equal again
    assert not (served(tmp_path).folder / "b_shared").exists()


def test_ensembles_published_together_share_the_step_in_which_they_differ_from_others(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "b", "c", mark="y", shared="another")
    release = served(tmp_path)
    release.verify()
    first = [read_config(name, release.folder).ensemble_scheduling.step[0].model_name for name in "abc"]
    assert first == ["shared", "b_shared", "b_shared"]
    assert not (release.folder / "c_shared").exists()


def test_one_step_alone_is_replaced_and_its_ensemble_follows(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "b", mark="y")
    with staging(tmp_path) as staged:  # as an index comes, with a cadence of its own
        shutil.copytree(tmp_path / "2" / "own_b", staged / "own_b")
        (staged / "own_b" / "2").rename(staged / "own_b" / "1")
        (staged / "own_b" / "1" / "model.onnx").unlink()
        (staged / "own_b" / "1" / "model.onnx").write_text("a new index")
        release = publish(tmp_path, staged, {})
    release.verify()
    assert (release.version("own_b"), release.version("b"), release.version("a")) == (3, 3, 1)
    assert [step.model_version for step in read_config("b", release.folder).ensemble_scheduling.step] == [1, 3]
    assert (release.folder / "b" / "labels.txt").read_text() == "y"
    assert read_config("b", tmp_path / "2").ensemble_scheduling.step[1].model_version == 2, "nothing changes in place"


def test_what_belongs_to_no_ensemble_is_refused(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    with staging(tmp_path) as staged:
        shutil.copytree(tmp_path / "1" / "own_a", staged / "stray")
        with pytest.raises(RepositoryError, match="stray: no step of a"):
            publish(tmp_path, staged, {})
        (staged / "stray" / "config.pbtxt").write_text(
            'ensemble_scheduling { step { model_name: "absent" model_version: -1 } }'
        )
        with pytest.raises(RepositoryError, match="step absent is neither among the new models nor in the current"):
            publish(tmp_path, staged, {"stray": {}})
    assert release_numbers(tmp_path) == [1]


def test_roll_back_removes_nothing_and_the_next_release_goes_on_from_there(tmp_path: Path) -> None:
    for mark in "xyz":
        publish_marked(tmp_path, "a", mark=mark)
    assert rollback(tmp_path).number == 2
    assert rollback(tmp_path).number == 1
    with pytest.raises(RepositoryError, match="has releases 1, 2, 3, 1 is current: there is none to go back to"):
        rollback(tmp_path)
    assert rollback(tmp_path, 3).number == 3
    rollback(tmp_path)
    publish_marked(tmp_path, "b", mark="w")
    release = served(tmp_path)
    assert (release.number, release.before, release.version("a")) == (4, 2, 2)
    assert rollback(tmp_path).number == 2, "not the one that was rolled back from"


def test_the_last_releases_are_kept(tmp_path: Path) -> None:
    for count in range(KEPT_RELEASES + 3):
        publish_marked(tmp_path, "a", mark=f"{count}")
    numbers = list(range(4, 4 + KEPT_RELEASES))
    assert release_numbers(tmp_path) == numbers
    assert {path.name for path in tmp_path.iterdir()} == {*map(str, numbers), "current", LOCK_FILE}


def test_everything_happens_inside_the_repository(tmp_path: Path) -> None:
    """It may be a mount point: the folder around it is not touched, and nothing is renamed across file systems."""
    repository, seen = tmp_path / "mounted", []
    repository.mkdir()

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("os.rename", "os.mkdir", "os.link", "os.symlink"):
            seen.extend(Path(str(path)) for path in arguments[: 2 if event != "os.mkdir" else 1] if path != -1)

    watching = True
    sys.addaudithook(watch)
    publish_marked(repository, "a", mark="x")
    publish_marked(repository, "b", mark="y")
    watching = False
    assert seen
    assert [path for path in seen if path.is_absolute() and not path.is_relative_to(repository)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


def test_two_commands_at_once_both_end_in_a_whole_release(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda i: publish_marked(tmp_path, "ab"[i % 2], mark=f"{i}."), range(12)))
    assert sorted(numbers) == list(range(1, 13))
    assert set(served(tmp_path).ensembles) == {"a", "b"}
    check_whole(tmp_path)


def test_killed_at_random_there_is_a_whole_release_and_the_next_command_goes_on(tmp_path: Path) -> None:
    """SHELFWISE_KILLS=1000 for a long run."""
    kills = os.environ.get("SHELFWISE_KILLS", "60")
    run_marked_releases(tmp_path, kills)


def test_killed_at_every_step_there_is_a_whole_release(tmp_path: Path) -> None:
    assert int(run_marked_releases(tmp_path)) > 50


def run_marked_releases(repository: Path, *arguments: str) -> str:
    program = [sys.executable, "-m", "tests.repository.marked_releases", str(repository), *arguments]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_full_disk_leaves_the_last_release(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    # A limit on the size of files fails a write half-way, as a full disk does.
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from pathlib import Path; from tests.repository.marked_releases import check_whole, publish_marked;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900));"
        "publish_marked(Path(sys.argv[1]), 'b', mark='y')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "OSError: [Errno 27] File too large" in result.stderr
    check_whole(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "current", LOCK_FILE}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "own_a" / "1" / "model.onnx"), r"own_a/1/model\.onnx changed"),
        (lambda folder: (folder / "a" / "labels.txt").unlink(), r"a/labels\.txt missing"),
        (lambda folder: (folder / "a" / "2").mkdir() or (folder / "a" / "2" / "x").touch(), "a/2/x not of this rel"),
        (lambda folder: (folder / "release.json").write_text("{"), r"release\.json: Expecting"),
    ],
    ids=["flipped bit", "missing", "added", "half a release.json"],
)
def test_check_start_and_roll_back_say_what_changed(damage: object, message: str, tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "b", mark="y")
    rollback(tmp_path)
    assert callable(damage)
    damage(tmp_path / "1")
    option = ["--repository", str(tmp_path)]
    for command in (["repository", "check", *option], ["serve", *option], ["rollback", "--version", "1", *option]):
        result = CliRunner().invoke(shelfwise.app, command)
        assert result.exit_code == 1
        assert re.search(message, result.output)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_list_shows_what_the_next_start_serves(tmp_path: Path) -> None:
    publish_marked(tmp_path, "a", mark="x")
    publish_marked(tmp_path, "b", mark="y")
    rollback(tmp_path)
    result = CliRunner().invoke(shelfwise.app, ["repository", "list", "--repository", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = [line.split()[:2] for line in result.output.splitlines()]
    assert lines[0] == ["*", "1"]
    assert ["b", "2"] in lines


def test_a_folder_without_a_release_is_refused_with_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no model: neither a release nor"):
        current(tmp_path)
    with pytest.raises(RepositoryError, match="is not a folder; `shelfwise export BUNDLE`"):
        current(tmp_path / "absent")
    with pytest.raises(RepositoryError, match="nothing to go back from"):
        rollback(tmp_path)
