"""Versions in a model repository: published whole, the previous one kept, rolled back by one command.

The repository in git holds what a person writes (config.pbtxt, model.py); the export adds numbered versions of what is
built.  All models of an ensemble move together: version N of the ensemble is version N of each of its steps.  A version
may bring configurations of its own, for the ensemble one with other steps.  New versions are written aside, checked
there, and renamed into place, the ensemble's last: its `release.json` says that the version is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from catalogue.atomic import atomic_file, sync

SOURCE = Path(__file__).resolve().parents[1] / "model_repository"
CONFIG_FILE = "config.pbtxt"
RELEASE_FILE = "release.json"
READINESS_FILE = "readiness.json"
SOURCE_FILES = ("model.py", ".gitkeep")
KEPT_VERSIONS = 2


class RepositoryError(RuntimeError):
    """A repository that is not in the state that a command needs."""


def read_config(model: str, repository: Path = SOURCE) -> ModelConfig:
    """The configuration of a model.

    Raises:
        RepositoryError: there is none, or it is no text protobuf; names the file.
    """
    return _read_config_file(repository / model / CONFIG_FILE, model)


def _read_config_file(path: Path, model: str) -> ModelConfig:
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError:
        raise RepositoryError(f"{path} is missing") from None
    except text_format.ParseError as error:
        raise RepositoryError(f"{path}: {error}") from error
    config.name = config.name or model
    return config


def ensemble_models(config: ModelConfig) -> list[str]:
    """The steps of an ensemble in order, the ensemble itself last."""
    return [*dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step), config.name]


def copy_module(module: ModuleType, folder: Path) -> None:
    """Puts a module of the project, a file or a package, into a folder of served files, under its own name."""
    source = Path(module.__file__ or "")
    if source.name == "__init__.py":
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source.parent, folder / source.parent.name, ignore=ignored)
    else:
        shutil.copyfile(source, folder / source.name)


def version_models(repository: Path, ensemble: str, version: int) -> list[str]:
    """The steps of a published version in order, the ensemble itself last."""
    own = repository / ensemble / str(version) / CONFIG_FILE
    if own.is_file():
        return ensemble_models(_read_config_file(own, ensemble))
    ours = (SOURCE / ensemble / CONFIG_FILE).is_file()
    return ensemble_models(read_config(ensemble, SOURCE if ours else repository))


def published_versions(repository: Path, ensemble: str) -> list[int]:
    """The complete versions of an ensemble, oldest first."""
    folders = (repository / ensemble).glob(f"[0-9]*/{RELEASE_FILE}")
    return sorted(int(path.parent.name) for path in folders)


class StagedVersion:
    """The next version of an ensemble while it is being written; made by `stage_version`."""

    def __init__(self, folder: Path, repository: Path, config: ModelConfig, version: int) -> None:
        self.folder = folder
        self.repository = repository
        self.ensemble = config.name
        self.version = version
        self.models = ensemble_models(config)
        for model in self.models:
            self.path(model).mkdir(parents=True)
            for name in SOURCE_FILES:
                if (SOURCE / model / "1" / name).is_file():
                    shutil.copyfile(SOURCE / model / "1" / name, self.path(model) / name)
        if config != read_config(self.ensemble):
            (self.path(self.ensemble) / CONFIG_FILE).write_text(text_format.MessageToString(config))

    def path(self, model: str) -> Path:
        """The folder that becomes `<repository>/<model>/<version>`."""
        return self.folder / model / str(self.version)

    def publish(self, release: dict[str, Any]) -> None:
        """Moves the version into the repository, beside the configurations, and drops versions that are too old.

        Raises:
            RepositoryError: the version brings configurations of its own, and those of the repository are git's.
        """
        own = [model for model in self.models if (self.path(model) / CONFIG_FILE).is_file()]
        if own and self.repository.resolve() == SOURCE:
            raise RepositoryError(
                f"this version needs other configurations ({', '.join(own)}) than those in {SOURCE}, which belong to "
                "the source; export to another folder with --repository"
            )
        (self.path(self.ensemble) / RELEASE_FILE).write_text(json.dumps(release, indent=2) + "\n")
        for model in self.models:
            for file in sorted(self.path(model).rglob("*"), reverse=True):
                sync(file)
        before = published_versions(self.repository, self.ensemble)[-1:]
        try:
            for model in self.models:
                target = self.repository / model
                target.mkdir(parents=True, exist_ok=True)
                _replace_folder(self.path(model), target / str(self.version))
                _place_files(self.repository, model, self.version)
                sync(target)
        except BaseException:
            self._take_back(before)
            raise
        for version in before:
            _hide_models(self.repository, self.ensemble, version, self.models)
        for old in published_versions(self.repository, self.ensemble)[:-KEPT_VERSIONS]:
            _remove_version(self.repository, self.ensemble, old)

    def _take_back(self, before: list[int]) -> None:
        """Undoes a publication that failed half-way: new steps must not be served with the old ensemble."""
        for model in reversed(self.models):
            moved = not self.path(model).exists()
            _take_back_folder(self.path(model), self.repository / model / str(self.version))
            for version in before if moved else ():
                with suppress(OSError, RepositoryError):  # the disk may be full; versions are what must fit
                    _place_files(self.repository, model, version)


@contextmanager
def stage_version(repository: Path, ensemble: str, config: ModelConfig | None = None) -> Iterator[StagedVersion]:
    """Opens the next version of an ensemble for writing; what is not published by the end is removed.

    `config` is the ensemble's configuration for this version, the source's when None.

    Raises:
        RepositoryError: the ensemble is none of this release's.
    """
    if not (SOURCE / ensemble / "config.pbtxt").is_file():
        raise RepositoryError(f"there is no model {ensemble!r} in {SOURCE}")
    repository.mkdir(parents=True, exist_ok=True)
    version = max(published_versions(repository, ensemble), default=0) + 1
    # Beside the repository, not in it (Triton takes every folder inside for a model), and on the same file system.
    folder = repository.resolve().parent / f".{repository.name}.{os.getpid()}.staging"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield StagedVersion(folder, repository, config or read_config(ensemble), version)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rollback(repository: Path, ensemble: str) -> int:
    """Removes the newest version of an ensemble and its steps, so that the one before it is served.

    Returns:
        The version that is now the newest.

    Raises:
        RepositoryError: there is no earlier version.
    """
    versions = published_versions(repository, ensemble)
    if len(versions) < 2:
        raise RepositoryError(f"{repository / ensemble} has versions {versions}: there is none to go back to")
    models = version_models(repository, ensemble, versions[-2])
    _hide_models(repository, ensemble, versions[-1], models)
    _remove_version(repository, ensemble, versions[-1])
    for model in models:
        _place_files(repository, model, versions[-2])
    return versions[-2]


def _place_files(repository: Path, model: str, version: int) -> None:
    """Puts what Triton and the readiness check read once for all versions where they read it, beside config.pbtxt.

    That is the configuration (the version's own, else that of the source), the label files that it names, and the
    readiness requests: they change with the version, and a roll-back brings the earlier ones back.
    """
    folder = repository / model / str(version)
    config = folder / CONFIG_FILE
    if not config.is_file():
        config = SOURCE / model / CONFIG_FILE
    labels = [output.label_filename for output in read_config(model).output if output.label_filename]
    files = {CONFIG_FILE: config} | {name: folder / name for name in [*labels, READINESS_FILE]}
    if repository.resolve() == SOURCE:
        del files[CONFIG_FILE]
    for name, source in files.items():
        if name in labels or source.is_file():
            with atomic_file(repository / model / name) as aside:
                shutil.copyfile(source, aside)


def _hide_models(repository: Path, ensemble: str, version: int, served: list[str]) -> None:
    """Takes the configurations of a version's steps away that are not among those served: Triton leaves them out."""
    if repository.resolve() != SOURCE:
        for model in set(version_models(repository, ensemble, version)) - set(served):
            (repository / model / CONFIG_FILE).unlink(missing_ok=True)


def _remove_version(repository: Path, ensemble: str, version: int) -> None:
    # The ensemble first: without its release file the version counts as incomplete from the first moment on.
    for model in reversed(version_models(repository, ensemble, version)):
        folder = repository / model / str(version)
        (folder / RELEASE_FILE).unlink(missing_ok=True)
        if repository.resolve() == SOURCE and version == 1:  # holds files of git
            for file in folder.iterdir():
                if file.name not in SOURCE_FILES:
                    _remove(file)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(new: Path, target: Path) -> None:
    """Renames `new` to `target`; a leftover of an interrupted export, or git's own files, make room first."""
    old = new.with_name(f"{new.name}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)


def _take_back_folder(new: Path, target: Path) -> None:
    """Undoes `_replace_folder`."""
    old = new.with_name(f"{new.name}.old")
    if target.exists() and not new.exists():
        os.replace(target, new)
    if old.exists():
        os.replace(old, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
