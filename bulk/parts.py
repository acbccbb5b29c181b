"""What a job leaves on disk, at every moment whole: parts, the manifest that lists them, and in the end the result.

    RESULT.parquet                      a row a product that was answered, in the order of the feed
    RESULT.rejects.jsonl                an object a row that was not, with its reason
    RESULT.parquet.parts/manifest.json  what the answers depend on, and the parts
    RESULT.parquet.parts/00007-….parquet

A part holds the rows of one block of the feed, answered or not, each with the hash of all that its answer depends on;
its name is a hash of those, so that the same rows are the same file. It is written aside, synced, renamed, then listed
by a manifest that takes the old one's place in one rename: what a killed job leaves unlisted is removed by the next.
Pages carry checksums. The result is joined from the parts, and takes the place of the one before it in one rename.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from catalogue.atomic import atomic_file

FORMAT_VERSION = 1
KEY_BYTES = 16
KEYS = pa.schema([pa.field("id", pa.string()), pa.field("key", pa.binary(KEY_BYTES))])
REASONS = pa.schema({"reason": pa.string(), "error": pa.string()})


class BulkError(ValueError):
    """A job that cannot go on; the message says why, and what would help."""


@dataclass(frozen=True)
class Identity:
    """What all answers of a result have in common.

    Attributes:
        system: that was asked, with the number of candidates.
        model: the hash of the model and its preprocessing.
        part_rows: rows of the feed in a part.
    """

    system: str
    k: int
    model: str
    part_rows: int


@dataclass(frozen=True)
class Part:
    """One file: of which block of the feed, how many rows, how many of them without an answer."""

    block: int
    file: str
    rows: int
    rejected: int


@dataclass(slots=True)
class Row:
    """A row of the feed on its way: asked about, known from an earlier part, or neither.

    Attributes:
        key: hash of all that the answer depends on.
        item: what to ask, None once it was, and where nothing is.
        known: file and row of an earlier part.
        values: of the answer.
        reason, error: why there is none.
    """

    block: int
    id: str | None
    key: bytes
    item: tuple[bytes | str | None, ...] | None = None
    known: tuple[str, int] | None = None
    values: Mapping[str, Any] | None = None
    reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Earlier:
    """The parts of the run before, by which a row is known.

    Attributes:
        anywhere: whether a row is looked for in all of them (`--only-changed`), or in its own place alone.
    """

    folder: Path
    parts: Sequence[Part] = ()
    anywhere: bool = False

    @cached_property
    def _by_block(self) -> dict[int, Part]:
        return {part.block: part for part in reversed(self.parts)}

    def part(self, block: int) -> Part | None:
        """The part of a block, if there was one."""
        return self._by_block.get(block)

    @lru_cache(2)  # noqa: B019  # one object a job
    def rows(self, file: str) -> tuple[list[str | None], list[bytes]]:
        """Ids and keys of a part."""
        table = read_part(self.folder / file, KEYS.names)
        return table["id"].to_pylist(), table["key"].to_pylist()

    def find(self, key: bytes) -> tuple[str, int] | None:
        """Where a key is, in any of the parts."""
        hashes, places = self._index
        at = int(np.searchsorted(hashes, wanted := _hash(key)))
        while at < len(hashes) and hashes[at] == wanted:
            part, row = divmod(int(places[at]), 2**32)
            file = self.parts[part].file
            if self.rows(file)[1][row] == key:
                return file, row
            at += 1
        return None

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes in ascending order and where each is: 16 bytes a row."""
        hashes = [np.array([_hash(key) for key in self.rows(part.file)[1]], np.uint64) for part in self.parts]
        places = [np.arange(len(part), dtype=np.int64) + (number << 32) for number, part in enumerate(hashes)]
        joined = np.concatenate([np.empty(0, np.uint64), *hashes])
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate([np.empty(0, np.int64), *places])[order]


@dataclass
class Results:
    """A result in the making; a context that holds its lock.

    Args:
        out: RESULT.parquet.
        identity: of the job.
        columns: of an answer.
        anew: forget what an earlier job left.
        only_changed: know rows wherever they stood, see `Earlier`.

    Raises:
        BulkError: on entering: another job writes it, the result is another job's or another model's, or a file in
            its place is none of ours.
        OSError: the folder cannot be written.
    """

    out: Path
    identity: Identity
    columns: pa.Schema
    anew: bool = False
    only_changed: bool = False
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self.rejects = self.out.with_suffix(".rejects.jsonl")
        self.schema = pa.unify_schemas([KEYS, self.columns, REASONS])

    def __enter__(self) -> Results:
        if self.out.suffix != ".parquet":
            raise BulkError(f"{self.out}: results are written as .parquet")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BulkError(f"another job is writing {self.out}") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _open(self) -> None:
        manifest = self.folder / "manifest.json"
        found: dict[str, Any] = {}
        if manifest.is_file() and not self.anew:
            try:
                found = json.loads(manifest.read_text())
                listed = [Part(**part) for part in (*found["parts"], *found["earlier"])]
                was = Identity(**found["identity"])
            except (ValueError, TypeError, KeyError) as error:
                raise BulkError(f"{manifest} is no manifest of a job: {error!r}; --anew begins again") from None
            self._check(was, found["format_version"])
            missing = [part.file for part in listed if not (self.folder / part.file).is_file()]
            if missing:
                raise BulkError(f"{self.folder} lacks {', '.join(missing[:3])}; --anew begins again")
        elif self.out.exists() and not self.anew:
            raise BulkError(f"{self.out} is there, and no job's that could go on; another --out, or --anew replaces it")
        else:
            listed = []
        self.complete = bool(found.get("complete")) and self.out.exists() and self.rejects.exists()
        self.earlier = Earlier(self.folder, listed, self.only_changed)
        if not found:
            self._list(complete=False)
        self._remove_unlisted()

    def _check(self, was: Identity, format_version: int) -> None:
        if format_version != FORMAT_VERSION:
            raise BulkError(f"{self.folder} has format_version {format_version}, wanted {FORMAT_VERSION}")
        if was.model != self.identity.model and was.system == self.identity.system:
            raise BulkError(
                f"{self.out} was answered by model {was.model[:12]}, now {self.identity.model[:12]} answers: "
                "another --out, or --anew asks about everything again"
            )
        if was != self.identity:
            differ = [name for name, value in asdict(was).items() if value != getattr(self.identity, name)]
            before, now = ({name: getattr(job, name) for name in differ} for job in (was, self.identity))
            raise BulkError(f"{self.out} is another job's: {before}, now {now}; another --out, or --anew replaces it")

    def commit(self, rows: Sequence[Row]) -> None:
        """Makes a block of rows a part, once: on disk and listed when this returns."""
        block = rows[0].block
        name = f"{block:06d}-{_digest(rows)}.parquet"
        before = self.earlier.part(block)
        if before is not None and before.file == name:
            self.parts.append(before)
            return
        table = pa.Table.from_pylist(list(self._records(rows)), self.schema)
        rejected = table["reason"].length() - table["reason"].null_count
        with atomic_file(self.folder / name) as aside:
            pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
        self.parts.append(Part(block, name, len(rows), rejected))
        self.complete = False
        self._list(complete=False)

    def finish(self) -> None:
        """Joins the parts; afterwards the result is that of this feed, and nothing else is left."""
        if not self.complete or self.parts != self.earlier.parts:
            with atomic_file(self.rejects) as aside, aside.open("w", encoding="utf-8") as file:
                for table in self._tables(["id", "reason", "error"]):
                    for row in table.filter(table["reason"].is_valid()).to_pylist():
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
            answers = pa.unify_schemas([pa.schema([KEYS.field("id")]), self.columns])
            schema = answers.with_metadata({"shelfwise": json.dumps(asdict(self.identity))})
            with atomic_file(self.out) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
                for table in self._tables([*answers.names, "reason"]):
                    answered = table.filter(table["reason"].is_null()).select(answers.names)
                    writer.write_table(answered.replace_schema_metadata(schema.metadata))
        self.earlier = Earlier(self.folder)
        self._list(complete=True)
        self._remove_unlisted()

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        return (read_part(self.folder / part.file, columns) for part in self.parts)

    def _records(self, rows: Sequence[Row]) -> Iterator[Mapping[str, Any]]:
        """What a part says of its rows."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if row.known is not None:
                wanted[row.known[0]].append(row.known[1])
        known = {
            (file, number): record
            for file, numbers in wanted.items()
            for number, record in zip(numbers, read_part(self.folder / file).take(numbers).to_pylist(), strict=True)
        }
        for row in rows:
            said = known[row.known] if row.known else {**(row.values or {}), "reason": row.reason, "error": row.error}
            yield {**said, "id": row.id, "key": row.key}

    def _list(self, *, complete: bool) -> None:
        kept = {part.file for part in self.parts}
        content = {
            "format_version": FORMAT_VERSION,
            "identity": asdict(self.identity),
            "complete": complete,
            "parts": [asdict(part) for part in self.parts],
            "earlier": [asdict(part) for part in self.earlier.parts if part.file not in kept],
        }
        with atomic_file(self.folder / "manifest.json") as aside:
            aside.write_text(json.dumps(content) + "\n")

    def _remove_unlisted(self) -> None:
        listed = {part.file for part in (*self.parts, *self.earlier.parts)}
        for path in self.folder.iterdir():
            if path.name not in listed and path.name not in ("manifest.json", ".lock"):
                path.unlink()
        for target in (self.out, self.rejects):
            for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
                path.unlink()


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A part, or some of its columns.

    Raises:
        BulkError: it is not as it was written.
    """
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns)
    except (pa.ArrowException, OSError) as error:
        raise BulkError(f"{path} is damaged: {error}; --anew begins again") from error


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(repr((row.id, row.key)).encode())
    return digest.hexdigest()


def _hash(key: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(key[:8], "big"))
