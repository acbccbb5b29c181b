"""Product feeds: Parquet, or CSV with a folder of images, read as a stream of `Product` and written as Parquet.

A feed is iterated as often as wanted; each pass reads the file anew, in memory that does not grow with it. What is
wrong with a row is either an error that names file and row, or counted by its reason (`on_error`).
Own schema: id, images (list of encoded images), title, category ("A > B > C"), split, and a column an entity group.
Writing is atomic: aside, fsync, rename, so that a killed write leaves the old feed as it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from catalogue.atomic import atomic_file
from catalogue.brands import BrandVocabulary
from catalogue.columns import OWN_SCHEMA, PRESETS, ColumnMapping
from catalogue.images import MAX_BYTES
from catalogue.product import ENTITY_GROUPS, SPLITS, Product, Split, join_path, parse_path, split_of
from catalogue.tables import FeedError, RowFault, open_table
from catalogue.taxonomy import most_frequent_paths

__all__ = ["SCHEMA", "Feed", "FeedError", "FeedSummary", "detect_preset", "open_feed", "write_feed"]

NULL_WORDS = frozenset({"", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null", "None"})
"""Texts that mean "nothing here" in exported tables."""

SPLIT_WORDS: Mapping[str, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}

PATHS_SEPARATOR = "|"

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
        rows: rows read.
        products: products given out (or written).
        skipped: rows left out for a fault, by reason. Rows of splits that were not asked for are in none of these.
    """

    rows: int = 0
    products: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class Feed:
    """The products of a feed, to be iterated any number of times.

    Args:
        path: a .parquet or .csv file; image paths in it are relative to its folder.
        columns: which column holds what.
        on_error: "raise" stops at the first bad row, "skip" leaves bad rows out and counts them in `summary`.
        splits: give out the products of these splits only; rows of the others are checked for their id alone.

    Attributes:
        summary: counts of the last pass that came to its end.

    Raises:
        FeedError: the file, or a column that the mapping names, is missing. While iterating, under "raise": a bad row;
            always: a damaged file. Bad rows are those with no or a repeated id, an image path that leads out of the
            feed's folder (by "..", an absolute path or a symbolic link) or to no file, an image file above 20 MiB, an
            unknown split, a category that cannot be a path, text that is not UTF-8, or a wrong number of fields.
            Titles, images, entities and categories may be missing.

    Repeated ids are found by 8-byte hashes of the ids; two different ids are mistaken for one with probability
    n²/2**65 in a feed of n rows.
    """

    def __init__(
        self,
        path: Path | str,
        columns: ColumnMapping = OWN_SCHEMA,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        splits: Collection[Split] | None = None,
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
        self.summary = FeedSummary()
        self._folder = self.path.resolve().parent
        self._table = open_table(self.path)
        self._joined = self._read_lookup()
        self._present = self._present_columns()
        self._conventions: _Conventions | None = None

    def __iter__(self) -> Iterator[Product]:
        if self._conventions is None:
            self._conventions = self._learn_conventions()
        summary = FeedSummary()
        seen: set[int] = set()
        for row in self._table.rows(self._columns_to_read(self.columns.columns)):
            summary.rows += 1
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
                product = self._product(cells, product_id, split, self._conventions) if wanted else None
            except RowFault as fault:
                if self.on_error == "raise":
                    raise FeedError(f"{self.path}, row {row.number}: {fault}") from fault
                summary.skipped[fault.reason] += 1
                continue
            seen.add(key)
            if product is not None:
                summary.products += 1
                yield product
        self.summary = summary

    # What is checked and read once a feed.

    def fingerprint(self) -> str:
        """What must be the same for what was made of a feed to be used again: its file, and how it is read."""
        status = self.path.stat()
        columns = repr(replace(self.columns, optional=frozenset())) + repr(sorted(self.columns.optional))
        return repr((str(self.path.resolve()), status.st_size, status.st_mtime_ns, columns))

    def _present_columns(self) -> frozenset[str]:
        available = set(self._table.columns)
        if self.columns.lookup is not None:
            available |= set(self.columns.lookup.columns)
        for column in self.columns.columns:
            if column not in available and column not in self.columns.optional:
                has = ", ".join(self._table.columns)
                raise FeedError(f"{self.path}: no column {column!r}; the file has {has}")
        return frozenset(available)

    def _read_lookup(self) -> Mapping[object, Mapping[str, object]]:
        lookup = self.columns.lookup
        if lookup is None:
            return {}
        if lookup.key not in self._table.columns:
            raise FeedError(f"{self.path}: no column {lookup.key!r}; the file has {', '.join(self._table.columns)}")
        table = open_table(self.path.parent / lookup.file)
        for column in (lookup.key, *lookup.columns):
            if column not in table.columns:
                raise FeedError(f"{table.path}: no column {column!r}; the file has {', '.join(table.columns)}")
        rows = table.rows((lookup.key, *lookup.columns))
        return {row.cells[lookup.key]: {column: row.cells[column] for column in lookup.columns} for row in rows}

    def _columns_to_read(self, columns: Iterable[str]) -> list[str]:
        own = [column for column in columns if column in self._table.columns]
        if self.columns.lookup is not None and self.columns.lookup.key not in own:
            own.append(self.columns.lookup.key)
        return own

    def _learn_conventions(self) -> _Conventions:
        """One pass over titles and categories alone, for the mappings that read a row in the light of all rows."""
        paths: Counter[tuple[str, ...]] = Counter()
        titles: Counter[str] = Counter()
        if not (self.columns.file_by_leaf or self.columns.brand_from_title):
            return _Conventions({}, None)
        for row in self._table.rows(self._columns_to_read(self.columns.text_columns)):
            if row.fault is not None:
                continue
            cells = self._join(row.cells)
            try:
                paths[self._category(cells)] += 1
                titles[self._title(cells)] += 1
            except RowFault:
                continue
        return _Conventions(
            most_frequent_paths(paths) if self.columns.file_by_leaf else {},
            BrandVocabulary(titles.elements()) if self.columns.brand_from_title else None,
        )

    # From cells to a product.

    def _join(self, cells: Mapping[str, object]) -> Mapping[str, object]:
        lookup = self.columns.lookup
        if lookup is None:
            return cells
        found = self._joined.get(cells[lookup.key])
        if found is None:
            message = f"column {lookup.key!r}: {cells[lookup.key]!r} is not in {lookup.file}"
            raise RowFault("class not in the lookup table", message)
        return {**cells, **found}

    def _product(
        self, cells: Mapping[str, object], product_id: str, split: Split, conventions: _Conventions
    ) -> Product:
        title = self._title(cells)
        category = self._category(cells)
        if category and category[-1] in conventions.filed_under:
            category = conventions.filed_under[category[-1]]
        entities = {group: _text(cells, column) for group, column in self.columns.entities.items()}
        if conventions.brands is not None:
            entities["brand"] = conventions.brands.brand_of(title)
        return Product(
            id=product_id,
            images=self._images(cells),
            title=title,
            category=category,
            entities={group: value for group in ENTITY_GROUPS if (value := entities.get(group))},
            split=split,
        )

    def _id(self, cells: Mapping[str, object]) -> str:
        product_id = _text(cells, self.columns.id)
        if product_id is None:
            raise RowFault("missing id", f"column {self.columns.id!r} is empty")
        return product_id

    def _title(self, cells: Mapping[str, object]) -> str:
        return "" if self.columns.title is None else _text(cells, self.columns.title) or ""

    def _split(self, cells: Mapping[str, object], product_id: str) -> Split:
        word = None if self.columns.split is None else _text(cells, self.columns.split)
        if word is None:
            return split_of(product_id)
        if word not in SPLIT_WORDS:
            raise RowFault("unknown split", f"split {word!r} is none of {', '.join(SPLIT_WORDS)}")
        return SPLIT_WORDS[word]

    def _category(self, cells: Mapping[str, object]) -> tuple[str, ...]:
        columns = self.columns.category
        try:
            if len(columns) == 1:
                cell = cells.get(columns[0])
                if isinstance(cell, list):
                    return parse_path(join_path(tuple(str(label).strip() for label in cell)))
                return parse_path(_text(cells, columns[0]) or "")
            labels = [_text(cells, column) for column in columns]
            while labels and labels[-1] is None:
                labels.pop()
            if None in labels:
                raise ValueError(f"column {columns[labels.index(None)]!r} is empty above a label")
            path = tuple(label.strip() for label in labels if label is not None)
            join_path(path)
            return path
        except RowFault:
            raise
        except ValueError as error:
            raise RowFault("bad category", str(error)) from error

    def _images(self, cells: Mapping[str, object]) -> tuple[bytes, ...]:
        if self.columns.image is None:
            return ()
        return tuple(self._image_files(cells.get(self.columns.image)))

    def _image_files(self, cell: object) -> Iterator[bytes]:
        if isinstance(cell, bytes):
            if cell:
                yield cell
        elif isinstance(cell, str):
            for name in cell.split(PATHS_SEPARATOR):
                if name.strip() not in NULL_WORDS:
                    yield self._read_image(name.strip())
        elif isinstance(cell, Sequence):
            for part in cell:
                yield from self._image_files(part)
        elif isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
            yield from self._image_files(cell.get("bytes") or cell.get("path"))
        elif cell is not None and not (isinstance(cell, float) and math.isnan(cell)):
            message = f"column {self.columns.image!r} holds {type(cell).__name__}, not image bytes or paths"
            raise RowFault("bad cell", message)

    def _read_image(self, name: str) -> bytes:
        try:
            file = (self._folder / name).resolve()
            if not file.is_relative_to(self._folder):
                message = f"image path {name!r} leads out of the feed's folder"
                raise RowFault("image path outside the feed's folder", message)
            if not file.is_file():
                raise RowFault("missing image file", f"no image file {name!r} in the feed's folder")
            if (size := file.stat().st_size) > MAX_BYTES:
                message = f"image file {name!r} has {size} bytes, at most {MAX_BYTES} are taken"
                raise RowFault("image file too large", message)
            return file.read_bytes()
        except RowFault:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # unreadable, NUL in the name, loop of links
            raise RowFault("unreadable image file", f"image file {name!r}: {error}") from error


@dataclass(frozen=True)
class _Conventions:
    filed_under: Mapping[str, tuple[str, ...]]
    brands: BrandVocabulary | None


def _text(cells: Mapping[str, object], column: str) -> str | None:
    """The cell as text; None for nothing, NaN, and the words that mean nothing."""
    cell = cells.get(column)
    if isinstance(cell, str):
        return None if cell.strip() in NULL_WORDS else cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():  # whole numbers beside a null arrive as floats
        return str(int(cell))
    if isinstance(cell, (int, float)):
        return str(cell)
    raise RowFault("bad cell", f"column {column!r} holds {type(cell).__name__}, not text")


def _hash(product_id: str) -> int:
    return int.from_bytes(blake2b(product_id.encode(), digest_size=8).digest(), "big")


def open_feed(
    path: Path | str,
    preset: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    splits: Collection[Split] | None = None,
    **column_overrides: str | Sequence[str] | None,
) -> Feed:
    """Opens a feed by preset and column names.

    Args:
        path: a .parquet or .csv file.
        preset: one of `PRESETS`; None is the own schema, "shelfwise".
        on_error: what a bad row does, see `Feed`.
        splits: which splits to give out, all when None.
        column_overrides: columns named otherwise than in the preset, see `ColumnMapping.overridden`; for example
            `open_feed("shop.csv", id="sku", image="photo", category=("department", "class"), brand="maker")`.

    Raises:
        FeedError: the feed cannot be read, see `Feed`.
        ValueError: the preset or the name of an override is unknown.
    """
    name = preset or "shelfwise"
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; known: {', '.join(PRESETS)}")
    return Feed(path, PRESETS[name].overridden(column_overrides), on_error=on_error, splits=splits)


def detect_preset(path: Path | str) -> str:
    """The preset whose columns a feed has; "shelfwise", the own schema, when it is none of the others.

    Raises:
        FeedError: the file cannot be read.
    """
    available = set(open_table(Path(path)).columns)
    for name, mapping in PRESETS.items():
        joined = set() if mapping.lookup is None else set(mapping.lookup.columns)
        if set(mapping.columns) - mapping.optional - joined <= available:
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
