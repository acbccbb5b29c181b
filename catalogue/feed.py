"""Product feeds: Parquet, or text with a folder of images, read as a stream of `Product` and written as Parquet.

A feed is iterated as often as wanted; each pass reads the files anew, in memory that does not grow with them. What is
wrong with a row is either an error that names file and row, or counted by its reason (`on_error`); what no mapping
names is not looked at.
Own schema: id, images (list of encoded images), title, category ("A > B > C"), split, and a column an entity group.
Writing is atomic: aside, fsync, rename, so that a killed write leaves the old feed as it was.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from catalogue.atomic import atomic_file
from catalogue.brands import BrandVocabulary
from catalogue.cells import NULL_WORDS, is_nothing, text_of
from catalogue.class_report import ClassReport, frequent_spellings
from catalogue.columns import OWN_SCHEMA, PRESETS, ColumnMapping
from catalogue.image_files import ImageFolder
from catalogue.product import ENTITY_GROUPS, SPLITS, Product, Split, join_path, normal_label, parse_path, split_of
from catalogue.seen import SeenHashes
from catalogue.tables import FeedError, Row, RowFault, open_tables
from catalogue.taxonomy import most_frequent_paths

__all__ = ["SCHEMA", "BadRow", "Feed", "FeedError", "FeedSummary", "detect_preset", "open_feed", "write_feed"]

SPLIT_WORDS: Mapping[str, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}

PATHS_SEPARATOR = "|"

AROUND_IDS = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")

IMAGE_NAME = re.compile(rb"[^\x00-\x1f<>]{1,1000}\.[A-Za-z]{3,4}")

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.binary())),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        *(pa.field(group, pa.string()) for group in ENTITY_GROUPS),
        pa.field("split", pa.string()),
    ]
)
"""The own schema, as Arrow: a null category is unknown, a null entity absent."""

ROW_GROUP_BYTES = 8 * 2**20
ROW_GROUP_ROWS = 1024


@dataclass
class FeedSummary:
    """What one pass over a feed met.

    Attributes:
        rows: rows read; those that a quote swallowed are counted.
        products: products given out (or written).
        skipped: rows left out for a fault, by reason. Rows of splits that were not asked for are in none of these.
    """

    rows: int = 0
    products: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class BadRow:
    """A row that is no product: in which file, which row (from 1), which line of a text file, and why."""

    file: Path
    number: int
    line: int | None
    fault: RowFault

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.file}, row {self.number}: {self.fault}{line}"


class Feed:
    """The products of a feed, to be iterated any number of times.

    Args:
        path: a file, or a folder of part files, as `catalogue.tables.open_tables` takes them; image paths in it are
            relative to its folder (to the folder of the parts).
        columns: which column holds what.
        on_error: "raise" stops at the first bad row, "skip" leaves bad rows out and counts them in `summary`.
        splits: give out the products of these splits only; rows of the others are checked for their id alone.
        merge_case: categories that differ in upper and lower case alone are one, spelled as most of them are.

    Attributes:
        summary: counts of the last pass that came to its end.

    Raises:
        FeedError: the file, or a column that the mapping names, is missing, or such a column is there twice. While
            iterating, under "raise": a bad row; always: a damaged file. Bad rows are those with no or a repeated id,
            an image path that leads out of the feed's folder (by "..", an absolute path or a symbolic link) or to no
            file, an image file above 20 MiB, an unknown split, a category that cannot be a path, text that is not
            UTF-8, or a wrong number of fields. Titles, images, entities and categories may be missing.

    Ids have no white space around them; they are the same when they look the same (Unicode, NFC). Repeated ones are
    found by 8-byte hashes; two different ids are mistaken for one with probability n²/2**65 in a feed of n rows.
    """

    def __init__(
        self,
        path: Path | str,
        columns: ColumnMapping = OWN_SCHEMA,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        splits: Collection[Split] | None = None,
        merge_case: bool = False,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
        for split in splits or ():
            if split not in SPLITS:
                raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        self.path = Path(path)
        self.columns = columns
        self.on_error = on_error
        self.splits = None if splits is None else frozenset(splits)
        self.merge_case = merge_case
        self.summary = FeedSummary()
        lookup = columns.lookup
        self._tables = open_tables(self.path, but=lookup.file if lookup else None)
        self._folder = self.path if self.path.is_dir() else self.path.parent
        # The folder that holds the file itself, where the feed was reached through a link.
        self._images_folder = ImageFolder(self.path.resolve() if self.path.is_dir() else self.path.resolve().parent)
        self._check_columns()
        self._joined = self._read_lookup()

    def __iter__(self) -> Iterator[Product]:
        for entry in self.entries():
            if isinstance(entry, Product):
                yield entry
            elif self.on_error == "raise":
                raise FeedError(str(entry)) from entry.fault

    def entries(self) -> Iterator[Product | BadRow]:
        """The products in order, and in their places the rows that are none, whatever `on_error` says."""
        summary = FeedSummary()
        seen = SeenHashes()
        for name, row in self._rows(self.columns.columns):
            summary.rows += row.count
            try:
                if row.fault is not None:
                    raise row.fault
                cells = self._join(row.cells)
                product_id = self._id(cells)
                key = _hash(product_id)
                if key in seen:
                    raise RowFault("duplicate id", f"id {product_id!r} was seen before")
                split = self._split(cells, product_id)
                wanted = self.splits is None or split in self.splits
                product = self._product(cells, product_id, split) if wanted else None
            except RowFault as fault:
                summary.skipped[fault.reason] += row.count
                yield BadRow(name, row.number, row.line, fault)
                continue
            seen.add(key)
            if product is not None:
                summary.products += 1
                yield product
        self.summary = summary

    def fingerprint(self) -> str:
        """A hash that stays as long as a pass would give the same products: of files, image files, and the reading.

        Files are known by name, size and time of change. Image files that the feed names are looked up one by one.
        """
        digest = sha256()
        columns = replace(self.columns, optional=frozenset())
        digest.update(repr((columns, sorted(self.columns.optional), self.on_error, self.merge_case)).encode())
        digest.update(repr(sorted(self.splits or SPLITS)).encode())
        digest.update("".join(map(repr, self.file_states())).encode())
        image = self.columns.image
        if image is not None:
            for table in self._tables:
                if not table.names_files(image):
                    continue
                for row in table.rows([image]):
                    try:
                        names = [name for name in _images_in(row.cells.get(image), image) if isinstance(name, str)]
                    except RowFault:
                        continue
                    digest.update(repr([(name, self._images_folder.state(name)) for name in names]).encode())
        return digest.hexdigest()

    def file_states(self) -> list[tuple[str, int, int]]:
        """Path, size in bytes and time of change in ns of the feed's files, without the image files that it names."""
        files = [table.path for table in self._tables]
        if self.columns.lookup is not None:
            files.append(self._folder / self.columns.lookup.file)
        return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def row_count(self) -> int:
        """Rows of all files, bad ones counted; text files are read for it."""
        return sum(table.row_count() for table in self._tables)

    def class_report(self) -> ClassReport:
        """What a training on this feed should be told: how classes and splits are filled. One pass over the texts.

        Rows with a fault in their texts are passed over; images are not looked at.
        """
        categories, splits = [], []
        for _, row in self._rows(self.columns.text_columns):
            try:
                if row.fault is None:
                    cells = self._join(row.cells)
                    split = self._split(cells, self._id(cells))
                    categories.append(self._category(cells))
                    splits.append(split)
            except RowFault:
                continue
        return ClassReport.of(categories, splits)

    # What is checked and read once a feed.

    def _check_columns(self) -> None:
        lookup = self.columns.lookup
        joined = lookup.columns if lookup is not None else ()
        own = [column for column in self.columns.columns if column not in joined]
        if lookup is not None:
            own.append(lookup.key)
        for table in self._tables:
            for column in own:
                if table.columns.count(column) > 1:
                    raise FeedError(f"{table.path} has column {column!r} twice")
                if column not in table.columns and column not in self.columns.optional:
                    raise FeedError(f"{table.path}: no column {column!r}; the file has {_listed(table.columns)}")

    def _read_lookup(self) -> Mapping[str | None, Mapping[str, object]]:
        lookup = self.columns.lookup
        if lookup is None:
            return {}
        (table,) = open_tables(self._folder / lookup.file)
        for column in (lookup.key, *lookup.columns):
            if column not in table.columns:
                raise FeedError(f"{table.path}: no column {column!r}; the file has {_listed(table.columns)}")
        rows = table.rows((lookup.key, *lookup.columns))
        return {
            text_of(row.cells, lookup.key): {column: row.cells[column] for column in lookup.columns} for row in rows
        }

    @cached_property
    def _conventions(self) -> _Conventions:
        """One pass over titles and categories alone, for what reads a row in the light of all rows."""
        paths: Counter[tuple[str, ...]] = Counter()
        titles: Counter[str] = Counter()
        by_leaf, from_title = self.columns.file_by_leaf, self.columns.brand_from_title
        if not (by_leaf or from_title or self.merge_case):
            return _Conventions({}, {}, None)
        for _, row in self._rows(self.columns.text_columns):
            try:
                if row.fault is None:
                    cells = self._join(row.cells)
                    paths[self._path(cells)] += 1
                    titles[self._title(cells)] += 1
            except RowFault:
                continue
        spelled = frequent_spellings(paths) if self.merge_case else {}
        merged: Counter[tuple[str, ...]] = Counter()
        for path, count in paths.items():
            merged[spelled.get(path, path)] += count
        return _Conventions(
            spelled,
            most_frequent_paths(merged) if by_leaf else {},
            BrandVocabulary(titles.elements()) if from_title else None,
        )

    # From rows to a product.

    def _rows(self, columns: Collection[str]) -> Iterator[tuple[Path, Row]]:
        """The rows of all files, each with its file; those of one product as one where the mapping says so."""
        lookup = self.columns.lookup
        wanted = dict.fromkeys(columns if lookup is None else (*columns, lookup.key))
        for table in self._tables:
            rows = table.rows(wanted)
            for row in self._grouped(rows) if self.columns.rows_of_product else rows:
                yield table.path, row

    def _grouped(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows of the same id that follow one another as one: every cell from the first that has it, all images."""
        image = self.columns.image
        for row_id, group in groupby(rows, key=lambda row: self._grouping_key(row)):
            first, *others = group
            if row_id is None:
                yield from (first, *others)
                continue
            cells = dict(first.cells)
            for row in others:
                cells.update((column, cell) for column, cell in row.cells.items() if is_nothing(cells.get(column)))
            if image is not None:
                cells[image] = [row.cells.get(image) for row in (first, *others)]
            yield replace(first, cells=cells, count=1 + len(others))

    def _grouping_key(self, row: Row) -> str | None:
        try:
            return self._id(row.cells) if row.fault is None else None
        except RowFault:
            return None

    def _join(self, cells: Mapping[str, object]) -> Mapping[str, object]:
        lookup = self.columns.lookup
        if lookup is None:
            return cells
        found = self._joined.get(text_of(cells, lookup.key))
        if found is None:
            message = f"column {lookup.key!r}: {cells.get(lookup.key)!r} is not in {lookup.file}"
            raise RowFault("class not in the lookup table", message)
        return {**cells, **found}

    def _product(self, cells: Mapping[str, object], product_id: str, split: Split) -> Product:
        title = self._title(cells)
        named = {group: text_of(cells, column) for group, column in self.columns.entities.items()}
        entities = {group: normal_label(value) for group, value in named.items() if value}
        if self._conventions.brands is not None:
            entities["brand"] = self._conventions.brands.brand_of(title) or ""
        return Product(
            id=product_id,
            images=self._images(cells),
            title=title,
            category=self._category(cells),
            entities={group: value for group in ENTITY_GROUPS if (value := entities.get(group))},
            split=split,
        )

    def _id(self, cells: Mapping[str, object]) -> str:
        product_id = AROUND_IDS.sub("", text_of(cells, self.columns.id) or "")
        if not product_id:
            raise RowFault("missing id", f"column {self.columns.id!r} is empty")
        return product_id

    def _title(self, cells: Mapping[str, object]) -> str:
        return "" if self.columns.title is None else text_of(cells, self.columns.title) or ""

    def _split(self, cells: Mapping[str, object], product_id: str) -> Split:
        word = None if self.columns.split is None else text_of(cells, self.columns.split)
        if word is None:
            return split_of(product_id)
        split = SPLIT_WORDS.get(word.strip().lower())
        if split is None:
            raise RowFault("unknown split", f"split {word!r} is none of {', '.join(SPLIT_WORDS)}")
        return split

    def _category(self, cells: Mapping[str, object]) -> tuple[str, ...]:
        path = self._path(cells)
        path = self._conventions.spelled.get(path, path)
        return self._conventions.filed_under.get(path[-1], path) if path else ()

    def _path(self, cells: Mapping[str, object]) -> tuple[str, ...]:
        """The category as the row has it."""
        try:
            return _read_path(cells, self.columns.category) or _read_path(cells, self.columns.category_else)
        except RowFault:
            raise
        except ValueError as error:
            raise RowFault("bad category", str(error)) from error

    def _images(self, cells: Mapping[str, object]) -> tuple[bytes, ...]:
        if self.columns.image is None:
            return ()
        found = _images_in(cells.get(self.columns.image), self.columns.image)
        return tuple(image if isinstance(image, bytes) else self._images_folder.read(image) for image in found)


def _read_path(cells: Mapping[str, object], columns: Sequence[str]) -> tuple[str, ...]:
    """A category from a column that holds a path or a list of labels, or from one column a level."""
    if len(columns) == 1:
        cell = cells.get(columns[0])
        if not isinstance(cell, list):
            return parse_path(text_of(cells, columns[0]) or "")
        levels = {f"label {place}": label for place, label in enumerate(cell, start=1)}
    else:
        levels = {f"column {column!r}": cells.get(column) for column in columns}
    labels = [text_of(levels, level) for level in levels]
    while labels and labels[-1] is None:
        labels.pop()
    if None in labels:
        raise ValueError(f"{list(levels)[labels.index(None)]} is empty above a label")
    path = tuple(normal_label(label) for label in labels if label is not None)
    join_path(path)
    return path


def _images_in(cell: object, column: str) -> Iterator[bytes | str]:
    """The encoded images of a cell, and the names of image files in it."""
    if isinstance(cell, bytes):
        if cell:
            yield _name_in(cell) or cell
    elif isinstance(cell, str):
        yield from (name for part in cell.split(PATHS_SEPARATOR) if (name := part.strip()) not in NULL_WORDS)
    elif isinstance(cell, Sequence):
        for part in cell:
            yield from _images_in(part, column)
    elif isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
        yield from _images_in(cell.get("bytes") or cell.get("path"), column)
    elif not is_nothing(cell):
        raise RowFault("bad cell", f"column {column!r} holds {type(cell).__name__}, not image bytes or paths")


def _name_in(cell: bytes) -> str | None:
    """The name of an image file that came as bytes; None for bytes that are an image."""
    if not IMAGE_NAME.fullmatch(cell):
        return None
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True)
class _Conventions:
    spelled: Mapping[tuple[str, ...], tuple[str, ...]]
    filed_under: Mapping[str, tuple[str, ...]]
    brands: BrandVocabulary | None


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns)


def _hash(product_id: str) -> int:
    composed = unicodedata.normalize("NFC", product_id)
    return int.from_bytes(blake2b(composed.encode(), digest_size=8).digest(), "big")


def open_feed(
    path: Path | str,
    preset: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    splits: Collection[Split] | None = None,
    merge_case: bool = False,
    question: bool = False,
    **column_overrides: str | Sequence[str] | None,
) -> Feed:
    """Opens a feed by preset and column names.

    Args:
        path: a file or a folder of part files, see `catalogue.tables.open_tables`.
        preset: one of `PRESETS`; None is the own schema, "shelfwise".
        on_error: what a bad row does, see `Feed`.
        splits: which splits to give out, all when None.
        merge_case: read categories that differ in case alone as one, see `Feed`.
        question: read id, images and title alone; the other columns may be missing or wrong.
        column_overrides: columns named otherwise than in the preset, see `ColumnMapping.overridden`; for example
            `open_feed("shop.csv", id="sku", image="photo", category=("department", "class"), brand="maker")`.

    Raises:
        FeedError: the feed cannot be read, see `Feed`.
        ValueError: the preset or the name of an override is unknown.
    """
    name = preset or "shelfwise"
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; known: {', '.join(PRESETS)}")
    mapping = PRESETS[name].spelled_as(open_tables(Path(path))[0].columns).overridden(column_overrides)
    mapping = mapping.question() if question else mapping
    return Feed(path, mapping, on_error=on_error, splits=splits, merge_case=merge_case)


def detect_preset(path: Path | str) -> str:
    """The preset whose columns a feed has; "shelfwise", the own schema, when it is none of the others.

    Raises:
        FeedError: the file cannot be read.
    """
    columns = open_tables(Path(path))[0].columns
    for name, preset in PRESETS.items():
        mapping = preset.spelled_as(columns)
        joined = set() if mapping.lookup is None else set(mapping.lookup.columns)
        if set(mapping.columns) - mapping.optional - joined <= set(columns):
            return name
    return "shelfwise"


def write_feed(path: Path | str, products: Iterable[Product]) -> FeedSummary:
    """Writes products as Parquet in the own schema, in row groups small enough to stream.

    The file appears under its name only when it is complete and on disk; a write that fails or is killed leaves the
    old file (a killed one also leaves `.NAME.PID.tmp` beside it).

    Raises:
        FeedError: the name does not end in .parquet, or an id repeats.
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise FeedError(f"{path}: feeds are written as .parquet")
    summary = FeedSummary()
    # Images are compressed already.
    compression = {field.name: "zstd" for field in SCHEMA if field.name != "images"} | {"images.list.element": "none"}
    with atomic_file(path) as aside, pq.ParquetWriter(aside, SCHEMA, compression=compression) as writer:
        for group in _row_groups(path, products):
            writer.write_batch(pa.RecordBatch.from_pylist(group, SCHEMA))
            summary.rows += len(group)
    summary.products = summary.rows
    return summary


def _row_groups(path: Path, products: Iterable[Product]) -> Iterator[list[dict[str, object]]]:
    seen: set[int] = set()
    group: list[dict[str, object]] = []
    size = 0
    for product in products:
        key = _hash(product.id)
        if key in seen:
            raise FeedError(f"{path}: id {product.id!r} repeats")
        seen.add(key)
        group.append(
            {
                "id": product.id,
                "images": list(product.images),
                "title": product.title,
                "category": join_path(product.category) or None,
                **{name: product.entities.get(name) for name in ENTITY_GROUPS},
                "split": product.split,
            }
        )
        size += sum(map(len, product.images)) + len(product.title)
        if len(group) >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
