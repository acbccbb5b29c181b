"""Writing a snapshot: only photos that changed are embedded, products that left the feed are left out.

The new snapshot is written beside the old one, flushed to the disk and put in its place by a rename: killed, or out of
disk, the old one stays, and the same command starts again. What an earlier snapshot of the same encoder holds is taken
from there by the hash of the image file, whatever product it now belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import faiss
import numpy as np

from catalogue.atomic import atomic_folder

from .partition import EXACT_NUMBERS, build_partition
from .snapshot import (
    MANIFEST,
    PARTITION,
    Encoder,
    Manifest,
    PartitionRecord,
    Snapshot,
    SnapshotError,
    content_key,
    file_digest,
    open_snapshot,
)

PHOTOS_A_CHUNK = 1_024

Embed = Callable[[Sequence[bytes]], np.ndarray]
"""Image files to unit vectors [B, D] float32; NaN for a file that cannot be read."""


@dataclass(frozen=True)
class IndexedProduct:
    """A product as the index takes it: its image files, and values by attribute ("" for none)."""

    id: str
    images: Sequence[bytes]
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class PublishSummary:
    """What a run did.

    Attributes:
        products, photos: in the index now.
        embedded: photos that were embedded; the others were known.
        deleted: products of the earlier snapshot that are no more.
        without_photo: products left out since none of their images could be read.
        unreadable: images that could not be read.
        partition: of a large index.
    """

    products: int
    photos: int
    embedded: int
    deleted: int
    without_photo: int
    unreadable: int
    partition: PartitionRecord | None


def publish(
    folder: Path,
    products: Iterable[IndexedProduct],
    embed: Embed,
    encoder: Encoder,
    columns: Sequence[str],
    queries: np.ndarray,
) -> PublishSummary:
    """Writes the snapshot of a catalogue to `folder`, in the place of the one that is there.

    Args:
        folder: of the snapshot.
        products: of the catalogue, read once.
        embed: the image encoder.
        encoder: its hashes.
        columns: attributes to filter by.
        queries: [Q, D] float32, texts that a partition is measured with; the width of all vectors.

    Raises:
        ValueError: two products have one id, or `embed` gives vectors of another width.
    """
    before = _earlier(folder, encoder)
    with atomic_folder(folder) as aside:
        writer = _Writer(aside, before, embed, columns, queries.shape[1])
        with writer:
            for chunk in _chunks(products):
                writer.add(chunk)
        record = None
        if writer.photos * queries.shape[1] > EXACT_NUMBERS:
            vectors = np.memmap(aside / "vectors.f32", np.float32, "r").reshape(writer.photos, -1)
            partition_before = None if before is None else before.manifest.partition
            path = None if partition_before is None else folder / PARTITION
            partition, record = build_partition(vectors, queries, path, partition_before)
            faiss.write_index(partition.index, str(aside / PARTITION))
        manifest = Manifest(
            encoder=encoder,
            embed_dim=queries.shape[1],
            products=len(writer.ids),
            photos=writer.photos,
            columns={column: list(names) for column, names in writer.names.items()},
            files={file.name: file_digest(file) for file in sorted(aside.iterdir())},
            partition=record,
        )
        (aside / MANIFEST).write_text(json.dumps(asdict(manifest), ensure_ascii=False, indent=1) + "\n", "utf-8")
        deleted = 0 if before is None else sum(before.id_of(p) not in writer.ids for p in range(len(before)))
    return PublishSummary(
        products=len(writer.ids),
        photos=writer.photos,
        embedded=writer.embedded,
        deleted=deleted,
        without_photo=writer.without_photo,
        unreadable=writer.unreadable,
        partition=record,
    )


def _earlier(folder: Path, encoder: Encoder) -> Snapshot | None:
    """The snapshot in `folder`, None when there is none that vectors can be taken from."""
    try:
        return open_snapshot(folder, encoder)
    except SnapshotError:
        return None


def _chunks(products: Iterable[IndexedProduct]) -> Iterator[list[IndexedProduct]]:
    products = iter(products)
    while chunk := list(islice(products, PHOTOS_A_CHUNK)):
        yield chunk


class _Row(NamedTuple):
    product: int
    photo: int
    key: bytes
    vector: np.ndarray


class _Writer:
    """Appends products to the files of a snapshot."""

    def __init__(
        self, folder: Path, before: Snapshot | None, embed: Embed, columns: Sequence[str], embed_dim: int
    ) -> None:
        self.ids: dict[str, int] = {}
        self.names: dict[str, dict[str, int]] = {column: {} for column in columns}
        self.photos = self.embedded = self.unreadable = self.without_photo = 0
        self._folder = folder
        self._before = before
        self._known = {} if before is None else {bytes(key): row for row, key in enumerate(before.content)}
        self._embed = embed
        self._embed_dim = embed_dim
        self._ids_end = 0
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> _Writer:
        for name in ("vectors.f32", "product.i32", "photo.i32", "content.u8", "ids.utf8", "ids.i64", "attributes.i32"):
            self._files[name] = (self._folder / name).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, products: Sequence[IndexedProduct]) -> None:
        """Embeds what is new of some products and writes them."""
        keys = [[content_key(image) for image in product.images] for product in products]
        new = {
            key: image
            for product, own in zip(products, keys, strict=True)
            for key, image in zip(own, product.images, strict=True)
            if key not in self._known
        }
        embedded = dict(zip(new, self._embedded(list(new.values())), strict=True))
        unreadable = {key for key, vector in embedded.items() if not np.isfinite(vector).all()}
        rows: list[_Row] = []
        kept: list[IndexedProduct] = []
        for product, own in zip(products, keys, strict=True):
            usable = [(photo, key) for photo, key in enumerate(own) if key not in unreadable]
            self.unreadable += len(own) - len(usable)
            if not usable:
                self.without_photo += 1
                continue
            number = self._number(product.id)
            rows += [_Row(number, photo, key, self._vector(key, embedded)) for photo, key in usable]
            kept.append(product)
        self._write(kept, rows)

    def _embedded(self, images: list[bytes]) -> np.ndarray:
        if not images:
            return np.empty((0, self._embed_dim), np.float32)
        vectors = np.asarray(self._embed(images), np.float32)
        if vectors.shape != (len(images), self._embed_dim):
            raise ValueError(f"the encoder gave {vectors.shape} for {len(images)} images of width {self._embed_dim}")
        self.embedded += int(np.isfinite(vectors).all(axis=1).sum())
        return vectors

    def _vector(self, key: bytes, embedded: Mapping[bytes, np.ndarray]) -> np.ndarray:
        if key in embedded:
            return embedded[key]
        assert self._before is not None
        return self._before.vectors[self._known[key]]

    def _number(self, product_id: str) -> int:
        if product_id in self.ids:
            raise ValueError(f"product {product_id!r} is there twice")
        return self.ids.setdefault(product_id, len(self.ids))

    def _write(self, products: Sequence[IndexedProduct], rows: Sequence[_Row]) -> None:
        if not rows:
            return
        ids = [product.id.encode() for product in products]
        ends = self._ids_end + np.cumsum([len(encoded) for encoded in ids], dtype=np.int64)
        self._ids_end = int(ends[-1])
        codes = [
            [self._code(column, product.attributes.get(column, "")) for product in products] for column in self.names
        ]
        written = {
            "vectors.f32": np.stack([row.vector for row in rows]),
            "product.i32": np.array([row.product for row in rows], np.int32),
            "photo.i32": np.array([row.photo for row in rows], np.int32),
            "content.u8": np.frombuffer(b"".join(row.key for row in rows), np.uint8),
            "ids.utf8": np.frombuffer(b"".join(ids), np.uint8),
            "ids.i64": ends,
            "attributes.i32": np.array(codes, np.int32).T,
        }
        for name, array in written.items():
            self._files[name].write(array.tobytes())
        self.photos += len(rows)

    def _code(self, column: str, name: str) -> int:
        return self.names[column].setdefault(name, len(self.names[column])) if name else -1
