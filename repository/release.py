"""A release: one folder with every model that Triton needs, and release.json with the digest of every file.

    REPOSITORY/8/release.json                       what it holds, made when, SHA-256 of each file
    REPOSITORY/8/categorize/config.pbtxt, 8/        a model; its one version is the release that brought it
    REPOSITORY/current -> 8                         what the next start serves

A release is itself a repository in Triton's layout, so any Triton can be pointed at one.  Nothing in it ever changes:
`repository.publish` makes another, with hard links to the models that stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .configs import CONFIG_FILE, RepositoryError, newest_version

RELEASE_FILE = "release.json"
CURRENT = "current"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Release:
    """What release.json says.

    Args:
        number: of the release, counting up.
        before: number of the release that was served when this one was made; None for the first.
        published: when, ISO 8601 in UTC.
        ensembles: what each ensemble was exported from and for, by name.
        files: SHA-256 of every file, in hexadecimal, by path inside the folder.
    """

    folder: Path
    number: int
    before: int | None
    published: str
    ensembles: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str]
    format_version: int = field(default=FORMAT_VERSION)

    @staticmethod
    def load(folder: Path) -> Release:
        """Reads release.json of a release's folder.

        Raises:
            RepositoryError: there is none, or it is not one; names the file.
        """
        path = folder / RELEASE_FILE
        try:
            release = Release(folder, **json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RepositoryError(f"{path} is missing: {folder} is no release") from None
        except (ValueError, TypeError) as error:
            raise RepositoryError(f"{path}: {error}") from error
        if release.format_version != FORMAT_VERSION:
            raise RepositoryError(f"{path}: format_version is {release.format_version}, wanted {FORMAT_VERSION}")
        return release

    def save(self) -> None:
        """Writes release.json."""
        content = asdict(self)
        del content["folder"]
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (self.folder / RELEASE_FILE).write_text(text + "\n", encoding="utf-8")

    def version(self, model: str) -> int:
        """The version of a model: number of the release that brought it. Raises RepositoryError when it has none."""
        version = newest_version(self.folder / model)
        if version is None:
            raise RepositoryError(f"{self.folder / model} has no version")
        return int(version.name)

    def verify(self) -> None:
        """Compares every file with its digest.

        Raises:
            RepositoryError: names the files that changed, are missing or do not belong to it.
        """
        missing = [name for name in self.files if not (self.folder / name).is_file()]
        changed = [name for name in set(self.files) - set(missing) if digest(self.folder / name) != self.files[name]]
        added = [name for name in _files(self.folder) if name not in self.files]
        wrong = {"changed": changed, "missing": missing, "not of this release": added}
        found = "; ".join(f"{', '.join(sorted(names))} {what}" for what, names in wrong.items() if names)
        if found:
            raise RepositoryError(
                f"{self.folder} is not as it was published: {found}. Export again, or `shelfwise rollback`"
            )


def current(repository: Path) -> Path:
    """The folder to serve: of the current release, or `repository` where it is a release or a plain Triton repository.

    Raises:
        RepositoryError: it is none of them.
    """
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder; `shelfwise export BUNDLE` writes a model repository")
    link = repository / CURRENT
    if link.is_symlink():
        if not link.is_dir():
            raise RepositoryError(f"{link} names {os.readlink(link)}, which is missing")
        return link.resolve()
    if not any(repository.glob(f"*/{CONFIG_FILE}")):
        raise RepositoryError(
            f"{repository} holds no model: neither a release nor a folder NAME with a {CONFIG_FILE}; export a bundle "
            "into it"
        )
    return repository


def verify(folder: Path) -> None:
    """Compares a release's files with their digests; a plain Triton repository has none. Raises RepositoryError."""
    if (folder / RELEASE_FILE).is_file():
        Release.load(folder).verify()


def release_numbers(repository: Path) -> list[int]:
    """The releases of a repository, oldest first."""
    return sorted(
        int(path.parent.name) for path in repository.glob(f"[0-9]*/{RELEASE_FILE}") if path.parent.name.isdigit()
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in there."""
    return {name: digest(folder / name) for name in _files(folder)}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    """Files below a folder but its release.json, sorted; and not what Python compiles where it may write."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if "__pycache__" not in path.parts and str(path) != RELEASE_FILE)
