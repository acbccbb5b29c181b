"""Image files that a feed names, found in the feed's folder and nowhere else.

Names come from other machines: with backslashes, in another Unicode normalisation than the disk's (macOS decomposes,
most others compose), or as the URL that the file was downloaded from. Nothing is fetched from the network; what
`wget --force-directories` made of the URLs in the feed's folder is found.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from catalogue.images import MAX_BYTES
from catalogue.tables import URL, RowFault, not_utf8


class ImageFolder:
    """The folder of a feed.

    Args:
        folder: an absolute path without links.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes:
        """The content of an image file.

        Args:
            name: relative to the folder; or a URL, see the module.

        Raises:
            RowFault: there is no such file, it lies outside the folder (by "..", an absolute path or a link), is above
                20 MiB, or cannot be read.
        """
        try:
            file = self._find(name)
            if (size := file.stat().st_size) > MAX_BYTES:
                message = f"image file {name!r} has {size} bytes, at most {MAX_BYTES} are taken"
                raise RowFault("image file too large", message)
            return file.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:  # unreadable, NUL in the name, loop of links
            if isinstance(error, RowFault):
                raise
            raise RowFault("unreadable image file", f"image file {name!r}: {error}") from error

    def state(self, name: str) -> tuple[int, int] | None:
        """Size in bytes and time of change in ns of an image file; None where there is none to read."""
        try:
            status = self._find(name).stat()
        except (OSError, ValueError, RuntimeError):
            return None
        return status.st_size, status.st_mtime_ns

    def _find(self, name: str) -> Path:
        if not_utf8(name):
            raise RowFault("not UTF-8", "an image path is not UTF-8")
        for spelling in _spellings(name):
            file = (self._folder / spelling).resolve()
            if not file.is_relative_to(self._folder):
                message = f"image path {name!r} leads out of the feed's folder"
                raise RowFault("image path outside the feed's folder", message)
            if not file.is_file() and not spelling.isascii():
                file = self._in_any_normalisation(file)
            if file.is_file():
                return file
        if url := URL.match(name):
            raise RowFault(
                "image is a URL",
                f"image {name!r} is a URL, and images are not fetched from the network: download it into the feed's "
                f"folder (wget --force-directories URL), where it is found as {name[url.end() :]!r}",
            )
        raise RowFault("missing image file", f"no image file {name!r} in the feed's folder")

    def _in_any_normalisation(self, file: Path) -> Path:
        found = self._folder
        for part in file.relative_to(self._folder).parts:
            forms = [part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]
            found /= next((form for form in forms if os.path.lexists(found / form)), part)
        resolved = found.resolve()
        return resolved if resolved.is_relative_to(self._folder) else file


def _spellings(name: str) -> Iterator[str]:
    if url := URL.match(name):
        rest = name[url.end() :].partition("#")[0]
        for path in (rest, rest.partition("?")[0]):
            yield from dict.fromkeys((path, unquote(path)))
    else:
        yield name
        if "\\" in name:
            yield name.replace("\\", "/")
