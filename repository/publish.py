"""Publishing: a release is made beside the others, whole, and becomes the current one by one rename.

Whoever has models to publish writes them to a `staging` folder inside the repository, each as Triton wants it, with
version "1"; `publish` adds, by hard links, the models that stay, writes versions into the ensembles, digests and syncs
everything, and renames twice: the folder to its number, then `current`.  A command that is killed leaves one release or
the other, and rubbish that the next command removes.  Everything is inside the repository, which may be a mount point.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .configs import (
    CONFIG_FILE,
    DIGEST,
    REPORT_FILE,
    RepositoryError,
    is_ensemble,
    model_configs,
    read_config,
    step_names,
    write_config,
)
from .release import CURRENT, Release, digests, release_numbers

KEPT_RELEASES = 3
LOCK_FILE = ".lock"
LOCK_SECONDS = 600.0
STAGING_PREFIX, TEMPORARY_PREFIX = ".staging-", ".temporary-"
STAGED_VERSION = "1"


@contextmanager
def locked(repository: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """One command at a time changes a repository; what killed ones left behind is removed first.

    Raises:
        RepositoryError: another command holds it for longer than `timeout` seconds.
    """
    try:
        with FileLock(repository / LOCK_FILE, timeout=timeout):
            _remove_rubbish(repository)
            yield
    except Timeout:
        raise RepositoryError(
            f"another command has been changing {repository} for {timeout:g} s; try again when it has ended"
        ) from None


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder inside the repository to write models to; what is not published by the end is removed."""
    repository.mkdir(parents=True, exist_ok=True)
    with locked(repository):
        folder = repository / f"{STAGING_PREFIX}{secrets.token_hex(6)}"
        folder.mkdir()
        alive = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(alive, fcntl.LOCK_EX)  # says that its command lives
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


def publish(repository: Path, staged: Path, ensembles: Mapping[str, Mapping[str, Any]]) -> Release:
    """Makes the models in `staged` the next release, together with all others of the current one.

    A model that equals the current release's keeps its version.  A step that another ensemble shares stays that one's
    where it differs, and is published under a name of its own.

    Args:
        repository: where to.
        staged: folder from `staging`, with a folder a model: config.pbtxt, version "1", whatever else it reads.
        ensembles: what release.json says of each ensemble in it.

    Raises:
        RepositoryError: an ensemble lacks a step, or a model belongs to no ensemble.
    """
    with locked(repository):
        link = repository / CURRENT
        before = Release.load(link.resolve()) if link.exists() else None
        number = max(release_numbers(repository), default=0) + 1
        described = {**(before.ensembles if before else {}), **ensembles}
        files = _Assembly(staged, before, number).complete(described)
        published = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        Release(staged, number, before.number if before else None, published, described, files).save()
        for path in sorted(staged.rglob("*"), reverse=True):
            _sync(path)
        _sync(staged)
        folder = repository / str(number)
        os.rename(staged, folder)
        point(link, folder)
        _prune(repository)
        return Release.load(folder)


def rollback(repository: Path, number: int | None = None) -> Release:
    """Makes an earlier release the current one, for the next start; nothing is removed.

    Args:
        repository: of the releases.
        number: which one; the one before the current one when None.

    Raises:
        RepositoryError: there is none, or its files are not as they were published.
    """
    link = repository / CURRENT
    if not link.is_symlink():
        raise RepositoryError(f"{repository} has no current release: there is nothing to go back from")
    with locked(repository):
        wanted = Release.load(link.resolve()).before if number is None else number
        kept = release_numbers(repository)
        if wanted not in kept:
            raise RepositoryError(
                f"{repository} has releases {', '.join(map(str, kept))}, {link.resolve().name} is current: "
                + ("there is none to go back to" if wanted is None else f"there is no {wanted}")
            )
        release = Release.load(repository / str(wanted))
        release.verify()
        point(link, release.folder)
        return release


def point(link: Path, target: Path) -> None:
    """Has a symbolic link name another folder, in one step."""
    aside = link.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
    aside.symlink_to(os.path.relpath(target, link.parent))
    os.replace(aside, link)
    _sync(link.parent)


def served_link(repository: Path, server: str) -> Path:
    """The link through which a server with model control reads its models, by the server's name (Triton's --id)."""
    return repository / "served" / server


def serve_through(repository: Path, server: str, release: Path) -> Path:
    """Has the link of a server name a release; the link, to be given to Triton as its repository."""
    link = served_link(repository, server)
    link.parent.mkdir(exist_ok=True)
    point(link, release)
    return link


class _Assembly:
    """Completes a staging folder to a release."""

    def __init__(self, staged: Path, before: Release | None, number: int) -> None:
        self.staged, self.before, self.number = staged, before, number
        self.old = {config.name: config for config in model_configs(before.folder)} if before else {}
        self.new = {config.name: config for config in model_configs(staged)}
        self.files: dict[str, str] = {}

    def complete(self, ensembles: Iterable[str]) -> dict[str, str]:
        """Puts all models of these ensembles in place; returns the digest of every file by its path."""
        self._rename_clashes()
        configs = {name: config for name in ensembles if (config := self.new.get(name, self.old.get(name)))}
        missing = set(ensembles) - {name for name, config in configs.items() if is_ensemble(config)}
        if missing:
            raise RepositoryError(f"there is no ensemble {', '.join(sorted(missing))} to publish")
        steps = dict.fromkeys(step for config in configs.values() for step in step_names(config))
        alone = set(self.new) - set(steps) - set(configs)
        if alone:
            raise RepositoryError(f"{', '.join(sorted(alone))}: no step of {', '.join(configs)}")
        versions = {step: self._place(step) for step in steps}
        for ensemble, config in configs.items():
            for step in config.ensemble_scheduling.step:
                step.model_version = versions[step.model_name]
            config.parameters[DIGEST].string_value = self._digest(config)
            if self.before and ensemble not in self.new and config != read_config(ensemble, self.before.folder):
                self._link(ensemble, STAGED_VERSION)  # one of its steps was replaced
                (self.staged / ensemble / CONFIG_FILE).unlink()  # else written through the link
                self.new[ensemble] = config
            if ensemble in self.new:
                write_config(config, self.staged / ensemble)
            self._place(ensemble)
        return self.files

    def _rename_clashes(self) -> None:
        """Gives new steps names of their own where ensembles that are not new have another one under that name."""
        kept = [config for name, config in self.old.items() if name not in self.new and is_ensemble(config)]
        renamed: dict[str, str] = {}  # ensembles published together share their new steps
        for ensemble in [config for config in self.new.values() if is_ensemble(config)]:
            for step in ensemble.ensemble_scheduling.step:
                name = step.model_name
                shared = any(name in step_names(config) for config in kept)
                if shared and name in self.new and digests(self.staged / name) != self._old_digests(name):
                    own = renamed[name] = f"{ensemble.name}_{name}"
                    os.rename(self.staged / name, self.staged / own)
                    self.new[own] = self.new.pop(name)
                step.model_name = renamed.get(name, name)

    def _place(self, model: str) -> int:
        """Gives a model its version, that of before where nothing changed, and records its files; the version."""
        if model in self.new:
            found = digests(self.staged / model)
            if found != self._old_digests(model):
                os.rename(self.staged / model / STAGED_VERSION, self.staged / model / str(self.number))
                self.files |= {f"{model}/{_with_version(name, self.number)}": value for name, value in found.items()}
                return self.number
            shutil.rmtree(self.staged / model)
        if self.before is None or model not in self.old:
            raise RepositoryError(f"step {model} is neither among the new models nor in the current release")
        version = self.before.version(model)
        self._link(model, str(version))
        self.files |= {name: value for name, value in self.before.files.items() if name.startswith(f"{model}/")}
        return version

    def _digest(self, ensemble: ModelConfig) -> str:
        """A hash of all that decides the answers of an ensemble: its steps' files, whatever they are called here."""
        digest = hashlib.sha256()
        for place, step in enumerate(ensemble.ensemble_scheduling.step):
            digest.update(repr((place, sorted(step.input_map.items()), sorted(step.output_map.items()))).encode())
            for name, value in sorted(self.files.items()):
                model, _, inside = name.partition("/")
                if model == step.model_name and "/" in inside and not inside.endswith(REPORT_FILE):
                    digest.update(f"{_with_version(inside, STAGED_VERSION)} {value}\n".encode())
        return digest.hexdigest()

    def _link(self, model: str, version: str) -> None:
        """The model of the release before, its files as hard links, its version's folder under this name."""
        assert self.before is not None
        shutil.copytree(self.before.folder / model, self.staged / model, copy_function=os.link)
        os.rename(self.staged / model / str(self.before.version(model)), self.staged / model / version)

    def _old_digests(self, model: str) -> dict[str, str]:
        """Digests of a model of the release before, as `digests` of its staging folder would be."""
        files = self.before.files if self.before else {}
        names = {name: name.removeprefix(f"{model}/") for name in files if name.startswith(f"{model}/")}
        return {_with_version(inside, STAGED_VERSION): files[name] for name, inside in names.items()}


def _with_version(path: str, version: int | str) -> str:
    """A path inside a model's folder with the number of its version replaced."""
    return re.sub(r"^\d+/", f"{version}/", path)


def _prune(repository: Path) -> None:
    """Removes all releases but the current one and those that it came after, one after the other."""
    kept: list[int] = []
    number: int | None = int((repository / CURRENT).resolve().name)
    present = release_numbers(repository)
    while number in present and len(kept) < KEPT_RELEASES:
        kept.append(number)
        number = Release.load(repository / str(number)).before
    for old in set(present) - set(kept):
        _remove_release(repository / str(old))


def _remove_release(folder: Path) -> None:
    """Takes a release's name away first: one that is removed half-way is none."""
    rubbish = folder.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
    os.rename(folder, rubbish)
    shutil.rmtree(rubbish, ignore_errors=True)


def _remove_rubbish(repository: Path) -> None:
    """Removes what killed commands left behind; a staging folder whose command lives is locked by it."""
    for path in repository.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    for folder in repository.glob(f"{STAGING_PREFIX}*"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _sync(path: Path) -> None:
    """Forces a file's, or a folder's, content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
