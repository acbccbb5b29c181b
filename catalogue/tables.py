"""The rows of a Parquet, CSV or JSON Lines file, streamed: memory does not grow with the file.

Parquet is read page by page (a page, whose size is the writer's choice, is the least that can be read) in batches of
a bounded number of bytes, however large its row groups are; CSV record by record, so that line breaks inside quotes
are text; JSON Lines line by line. Texts may be compressed (.gz, .zst, .bz2), and a folder of part files is read as
its files one after the other. Only the columns asked for are looked at: nothing else in a file can stop it.
A row that cannot be read arrives as a `Row` with a fault and leaves it to the reader of the feed whether that is an
error; what breaks the file itself raises `FeedError`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 4 * 2**20
MAX_BATCH_ROWS = 1024
READ_BUFFER_BYTES = 2**20
MAX_FIELD_CHARACTERS = 4 * 2**20
SAMPLED_ROWS = 1000

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
ENDINGS = (".parquet", *DELIMITERS, *JSON_LINES)

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
"""How a URL begins; also one whose two slashes a `Path` has made one."""

# Python's csv module has one limit for all readers; its own, 131,072, is less than descriptions in HTML take.
csv.field_size_limit(MAX_FIELD_CHARACTERS)


class FeedError(ValueError):
    """A feed that cannot be read; the message names the file, and the column or the row."""


class RowFault(ValueError):
    """What is wrong with one row: a short `reason` to count by, and a message for the person who mends the row."""

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        number: counted from 1, the header of a CSV file not counted.
        cells: value by column; a column that the row lacks may be left out.
        fault: why the row has no cells, if it could not be read.
        count: rows of the file that it stands for: more than one when a quote swallowed those behind it, or when they
            are one product.
        line: where it begins in a text file, counted from 1.
    """

    number: int
    cells: Mapping[str, object] = field(default_factory=dict)
    fault: RowFault | None = None
    count: int = 1
    line: int | None = None


class Table(Protocol):
    """Rows with named columns.

    Attributes:
        path: the file.
        columns: names in the order of the file; what is not asked for may repeat or be empty.
    """

    path: Path
    columns: tuple[str, ...]

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every row, with the cells of those of the columns that the table has.

        Raises:
            FeedError: the file is damaged.
        """

    def names_files(self, column: str) -> bool:
        """Whether the cells of a column may be text, and so name files."""

    def row_count(self) -> int:
        """How many rows there are."""


class ParquetTable:
    """Rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            schema = file.schema_arrow
        self.columns: tuple[str, ...] = tuple(schema.names)
        self._types = {field.name: str(field.type) for field in schema}

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every row, see `Table`."""
        number = 0
        with self._open() as file:
            # Bounded memory needs both: batches sized by the average row, and no read-ahead of whole row groups.
            stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            average = max(1, stored // max(1, file.metadata.num_rows))
            batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // average))
            batches = file.iter_batches(batch_size=batch_rows, columns=list(columns), use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise FeedError(f"{self.path}: damaged after row {number}: {error}") from error
                if batch is None:
                    return
                values = [_python_values(column) for column in batch.columns]
                for cells in zip(*values, strict=True):
                    number += 1
                    broken = next((cell for cell in cells if isinstance(cell, RowFault)), None)
                    if broken is not None:
                        yield Row(number, fault=broken)
                    else:
                        yield Row(number, dict(zip(batch.schema.names, cells, strict=True)))

    def names_files(self, column: str) -> bool:
        """Whether the cells of a column may be text, see `Table`."""
        return "string" in self._types.get(column, "")

    def row_count(self) -> int:
        """As the file says."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FeedError(f"{self.path}: not a readable Parquet file: {error}") from error


def _python_values(column: pa.Array) -> list[object]:
    try:
        return column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):  # one broken cell must not hide its neighbours
        return [_python_value(column, place) for place in range(len(column))]


def _python_value(column: pa.Array, place: int) -> object:
    try:
        return column[place].as_py()
    except UnicodeDecodeError as error:
        return RowFault("not UTF-8", f"text that is not UTF-8: {error}")
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return RowFault("bad cell", f"a cell that cannot be read: {error}")


class CsvTable:
    """Rows of a CSV or TSV file: UTF-8 with or without a byte order mark, the first record is the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = DELIMITERS[_ending(path)]
        try:
            header = next(filter(any, self._records(_lines(path))), None)
        except csv.Error as error:
            raise FeedError(f"{path}: unreadable header: {error}") from error
        if not header:
            raise FeedError(f"{path}: no header in the first line")
        self.columns = tuple(_printable(name).strip() for name in header)

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every record, see `Table`; empty cells are None, and records of empty cells alone are none.

        A quote that is never closed, or where it should not be, takes the lines behind it along: a record that cannot
        be right stands for as many rows as it has lines that are records by themselves.
        """
        places = {column: self.columns.index(column) for column in columns if column in self.columns}
        lines = _Lines(_lines(self.path))
        records = self._records(lines)
        next(filter(any, records))
        number = 0
        while True:
            line = lines.start_record()
            fault, record = None, None
            try:
                record = next(records, None)
            except csv.Error as error:
                fault = RowFault("bad CSV", str(error))
            if record is None and fault is None:
                return
            if record is not None and not any(cell.strip() for cell in record):
                continue
            number += 1
            if record is not None:
                fault = self._fault(record, lines.read, places.values())
            if record is None or fault is not None:
                lost = 1 + sum(map(self._is_record, lines.read[1:]))
                if lost > 1:
                    opened = line + _quote_opened(lines.read)
                    fault = RowFault("bad CSV", f"{fault}; {lost} rows lost to a quote that opens in line {opened}")
                yield Row(number, fault=fault, count=lost, line=line)
                number += lost - 1
            else:
                yield Row(number, {column: record[place] or None for column, place in places.items()}, line=line)

    def names_files(self, column: str) -> bool:
        """Always: a CSV file holds text."""
        return column in self.columns

    def row_count(self) -> int:
        """By reading them."""
        return sum(row.count for row in self.rows(()))

    def _records(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _fault(self, record: list[str], lines: list[str], places: Iterable[int]) -> RowFault | None:
        width = len(self.columns)
        if any(record[width:]) or any(self.columns[len(record) :]):  # columns without a name may be missing
            return RowFault("wrong number of fields", f"{len(record)} fields, the header has {width}")
        if len(lines) > 2 and all(map(self._is_record, lines[1:-1])):
            return RowFault("bad CSV", "a field that holds whole rows")
        if any(not_utf8(record[place]) for place in places):
            return RowFault("not UTF-8", "text that is not UTF-8")
        return None

    def _is_record(self, line: str) -> bool:
        """Whether a line looks like a whole row; prose has a space behind its commas."""
        try:
            fields = next(csv.reader([line], delimiter=self._delimiter), [])
        except csv.Error:
            return False
        return len(fields) == len(self.columns) > 1 and not any(field.startswith(" ") for field in fields)


def _quote_opened(lines: list[str]) -> int:
    """The place of the line in which the quote opened that was open before the last line."""
    opened, odd = 0, False
    for place, line in enumerate(lines[:-1]):
        for _ in range(line.replace('""', "").count('"')):
            odd = not odd
            opened = place if odd else opened
    return opened


class _Lines:
    """Lines of a file, of which those of the record that is being read are remembered."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._before = 0
        self.read: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.read.append(next(self._lines))
        return self.read[-1]

    def start_record(self) -> int:
        """Forgets the record before; the number of the line that comes next, from 1."""
        self._before += len(self.read)
        self.read = []
        return self._before + 1


class JsonLinesTable:
    """Rows of a JSON Lines file: an object a line. A key that a row lacks is an empty cell.

    Attributes:
        columns: the keys of the first `SAMPLED_ROWS` rows, and the empty cells are not told from missing keys.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        columns: dict[str, None] = {}
        for row in islice(self.rows(()), SAMPLED_ROWS):
            columns.update(dict.fromkeys(row.cells))
        self.columns = tuple(columns)

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every line but empty ones, see `Table`, with all its cells."""
        number = 0
        for line, text in enumerate(_lines(self.path), start=1):
            if text.strip():
                number += 1
                try:
                    yield Row(number, _json_cells(text, columns), line=line)
                except RowFault as fault:
                    yield Row(number, fault=fault, line=line)

    def names_files(self, column: str) -> bool:
        """Always: JSON holds no bytes."""
        return True

    def row_count(self) -> int:
        """By reading them."""
        return sum(row.count for row in self.rows(()))


def _json_cells(text: str, columns: Collection[str]) -> dict[str, object]:
    try:
        cells = json.loads(text, object_pairs_hook=_json_object)
    except (ValueError, RecursionError) as error:
        raise RowFault("bad JSON", f"not JSON: {error}") from error
    if not isinstance(cells, dict):
        raise RowFault("bad JSON", f"a line holds {type(cells).__name__}, not an object")
    for column in columns:
        if cells.get(column) is _REPEATED:
            raise RowFault("bad JSON", f"key {column!r} is there twice")
    return cells


_REPEATED = object()


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        cells.update((name, _REPEATED) for name in cells if names.count(name) > 1)
    return cells


def _lines(path: Path) -> Iterator[str]:
    compression = COMPRESSED.get(path.suffix.lower())
    number = 0
    try:
        stream = pa.input_stream(path, compression=compression, buffer_size=READ_BUFFER_BYTES)
        # Bytes that are not UTF-8 become surrogates and cost their own row, not the rest of the file.
        with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for line in file:
                yield line
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise FeedError(f"{path}: damaged after line {number}: {error}") from error


def not_utf8(text: str) -> bool:
    """Whether a text has bytes in it that were not UTF-8, or half a character that JSON wrote alone."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode() if not_utf8(text) else text


def _ending(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def open_tables(path: Path, *, but: str | None = None) -> tuple[Table, ...]:
    """The table in a file, by its ending; of a folder those in its part files, in the order of their names.

    Args:
        path: a file that ends in one of `ENDINGS`, texts also with one of `COMPRESSED` behind it; or a folder that has
            such files. Hidden files and those whose names begin with "_" are no parts.
        but: name of a file that is none of the parts.

    Raises:
        FeedError: there is no such file, its ending is another one, it cannot be read, or the folder has no or
            different kinds of parts.
    """
    if URL.match(str(path)):
        raise FeedError(
            f"{path}: a URL; feeds are read from disk: download it (curl --remote-name URL) and name the file"
        )
    if not path.is_dir():
        return (_open_table(path),)
    parts = [part for part in sorted(path.iterdir()) if _ending(part) in ENDINGS and part.is_file()]
    parts = [part for part in parts if part.name[0] not in "._" and part.name != but]
    kinds = sorted({_ending(part) for part in parts})
    if len(kinds) != 1:
        raise FeedError(f"{path}: a folder of part files has parts of one kind; found {', '.join(kinds) or 'none'}")
    return tuple(map(_open_table, parts))


def _open_table(path: Path) -> Table:
    if not path.is_file():
        raise FeedError(f"{path}: no such file")
    ending = _ending(path)
    if ending == ".parquet" and path.suffix.lower() == ".parquet":
        return ParquetTable(path)
    if ending in DELIMITERS:
        return CsvTable(path)
    if ending in JSON_LINES:
        return JsonLinesTable(path)
    known = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} (the texts also with {', '.join(COMPRESSED)} behind it)"
    raise FeedError(f"{path}: a feed ends in {known}, not {path.suffix!r}")
