"""The rows of a Parquet or CSV file, streamed: memory does not grow with the file.

Parquet is read page by page (a page, whose size is the writer's choice, is the least that can be read) in batches of
a bounded number of bytes, however large its row groups are; CSV record by record, so that line breaks inside quotes
are text. A row that cannot be read arrives as a `Row` with a fault and leaves it to the reader of the feed whether that
is an error; what breaks the file itself raises `FeedError`.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 4 * 2**20
MAX_BATCH_ROWS = 1024
READ_BUFFER_BYTES = 2**20


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
        cells: value by column.
        fault: why the row has no cells, if it could not be read.
    """

    number: int
    cells: Mapping[str, object] = field(default_factory=dict)
    fault: RowFault | None = None


class ParquetTable:
    """Rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every row, with the cells of `columns`.

        Raises:
            FeedError: the file is damaged.
        """
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
                except (pa.ArrowException, OSError) as error:
                    raise FeedError(f"{self.path}: damaged after row {number}: {error}") from error
                if batch is None:
                    return
                values = [_python_values(column) for column in batch.columns]
                for cells in zip(*values, strict=True):
                    number += 1
                    broken = next((cell for cell in cells if isinstance(cell, UnicodeDecodeError)), None)
                    if broken is not None:
                        yield Row(number, fault=RowFault("not UTF-8", f"text that is not UTF-8: {broken}"))
                    else:
                        yield Row(number, dict(zip(batch.schema.names, cells, strict=True)))

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise FeedError(f"{self.path}: not a readable Parquet file: {error}") from error


def _python_values(column: pa.Array) -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # one broken cell must not hide its neighbours
        return [_python_value(cell) for cell in column]


def _python_value(cell: pa.Scalar) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error


class CsvTable:
    """Rows of a CSV file: UTF-8 with or without a byte order mark, comma separated, first record the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            try:
                header = next(csv.reader(file, strict=True), None)
            except csv.Error as error:
                raise FeedError(f"{path}: unreadable header: {error}") from error
        if not header:
            raise FeedError(f"{path}: no header in the first line")
        if any(_not_utf8(name) for name in header):
            raise FeedError(f"{path}: the header is not UTF-8")
        self.columns = tuple(name.strip() for name in header)
        repeated = {name for name in self.columns if self.columns.count(name) > 1}
        if repeated:
            raise FeedError(f"{path}: the header names column {min(repeated)!r} twice")

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Every record, with the cells of `columns`; empty cells are None, blank lines are no records."""
        places = {column: self.columns.index(column) for column in columns}
        number = 0
        with self._open() as file:
            records = csv.reader(file, strict=True)
            next(records)
            while True:
                try:
                    record = next(records, None)
                except csv.Error as error:
                    number += 1
                    fault = RowFault("bad CSV", f"{error} (line {records.line_num})")
                    yield Row(number, fault=fault)
                    continue
                if record is None:
                    return
                if not record:
                    continue
                number += 1
                if len(record) != len(self.columns):
                    message = f"{len(record)} fields, the header has {len(self.columns)} (line {records.line_num})"
                    yield Row(number, fault=RowFault("wrong number of fields", message))
                elif any(map(_not_utf8, record)):
                    yield Row(number, fault=RowFault("not UTF-8", f"text that is not UTF-8 (line {records.line_num})"))
                else:
                    yield Row(number, {column: record[place] or None for column, place in places.items()})

    def _open(self) -> TextIO:
        # Bytes that are not UTF-8 become surrogates and cost their own row, not the rest of the file.
        return open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _not_utf8(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def open_table(path: Path) -> ParquetTable | CsvTable:
    """The table in a file, by its ending: .parquet or .csv.

    Raises:
        FeedError: there is no such file, its ending is another one, or it cannot be read.
    """
    if not path.is_file():
        raise FeedError(f"{path}: no such file")
    match path.suffix.lower():
        case ".parquet":
            return ParquetTable(path)
        case ".csv":
            return CsvTable(path)
        case other:
            raise FeedError(f"{path}: a feed ends in .parquet or .csv, not {other!r}")
