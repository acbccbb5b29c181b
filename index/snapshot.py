"""A snapshot: what was embedded, by which encoder, with the attributes that searches filter by; whole or not there.

    manifest.json      who made it, widths and counts, names of attribute values, sha256 of every other file
    vectors.f32        [N, D] float32, unit length, a row a photo; a product's photos one after the other
    product.i32        [N] int32, whose photo a row is
    photo.i32          [N] int32, which of its product's images it is
    content.u8         [N, 16] a hash of the image file: what needs no second embedding
    ids.utf8, ids.i64  [P] ids of products, one after the other, and where each ends
    attributes.i32     [P, columns] int32, index into the column's names, -1 for none
    partition.faiss    only of a large one, see partition.py

All but the manifest are raw arrays, mapped into memory: opening a million rows reads nothing twice, and processes on a
machine share the pages. Vectors of two encoders do not compare, so a snapshot names its own and is refused by others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARTITION = "partition.faiss"
CANDIDATES = 100
"""Rows of a partition that are compared exactly, at least."""
CONTENT_BYTES = 16


class SnapshotError(ValueError):
    """A snapshot that cannot be used, or a search that it cannot answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """What vectors depend on, as hexadecimal hashes: equal encoders give equal vectors for equal images.

    Attributes:
        model: of the image encoder's and the text encoder's file.
        tokenizer: of the tokenizer and the entity vocabulary.
        preprocessing: of how images are decoded and sized.
    """

    model: str
    tokenizer: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """How a large snapshot is searched without looking at every row, and how well that was seen to work.

    Attributes:
        lists: cells of the partition.
        scanned: rows looked at by an unfiltered search.
        recall_at_10: share of the true first ten that were found, in the worst of the cases measured.
        queries: how many queries were measured.
        trained_scanned: `scanned` when the cells were trained; they are trained anew when it has grown by half.
    """

    lists: int
    scanned: int
    recall_at_10: float
    queries: int
    trained_scanned: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says."""

    encoder: Encoder
    embed_dim: int
    products: int
    photos: int
    columns: dict[str, list[str]]
    files: dict[str, str]
    partition: PartitionRecord | None = None
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Snapshot:
    """P products with N photos, mapped into memory; arrays as in the module's head."""

    folder: Path
    manifest: Manifest
    vectors: np.ndarray
    product: np.ndarray
    photo: np.ndarray
    content: np.ndarray
    attributes: np.ndarray
    _ids: np.ndarray = field(repr=False)
    _id_ends: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return self.manifest.products

    @cached_property
    def first_photo(self) -> np.ndarray:
        """[P + 1] int64: the photos of product p are the rows from first_photo[p] to first_photo[p + 1]."""
        return np.concatenate([[0], np.bincount(self.product, minlength=len(self)).cumsum()])

    def id_of(self, product: int) -> str:
        """The id of a product."""
        begin = int(self._id_ends[product - 1]) if product else 0
        return bytes(self._ids[begin : int(self._id_ends[product])]).decode()

    def product_of(self, product_id: str) -> int | None:
        """The number of a product, None when it is not in the index."""
        keys, order = self._sorted_ids
        key = _id_key(product_id.encode())
        place = int(np.searchsorted(keys, key))
        while place < len(keys) and keys[place] == key:
            if self.id_of(int(order[place])) == product_id:
                return int(order[place])
            place += 1
        return None

    @cached_property
    def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the ids in ascending order, and whose they are: 12 bytes a product where a dict takes 150."""
        blob, ends = self._ids.tobytes(), self._id_ends.tolist()
        begins = [0, *ends][: len(ends)]
        keys = np.array([_id_key(blob[begin:end]) for begin, end in zip(begins, ends, strict=True)], np.uint64)
        order = np.argsort(keys).astype(np.int32)
        return keys[order], order


def open_snapshot(folder: Path, encoder: Encoder | None = None) -> Snapshot:
    """Maps a snapshot into memory.

    Args:
        folder: of the snapshot.
        encoder: that queries will be of; None takes any.

    Raises:
        SnapshotError: the folder holds no whole snapshot of this format, a file differs from its digest, or another
            encoder made it, whose hash and the expected one the message names.
    """
    manifest = read_manifest(folder)
    if encoder is not None:
        check_encoder(manifest.encoder, encoder, folder)
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise SnapshotError(f"{folder} is no whole snapshot: {name} is missing")
        found = file_digest(path)
        if found != digest:
            raise SnapshotError(f"{path} is not what was written: sha256 {found}, {digest} in the manifest")
    rows, products = manifest.photos, manifest.products
    return Snapshot(
        folder,
        manifest,
        vectors=_mapped(folder / "vectors.f32", np.float32, (rows, manifest.embed_dim)),
        product=_mapped(folder / "product.i32", np.int32, (rows,)),
        photo=_mapped(folder / "photo.i32", np.int32, (rows,)),
        content=_mapped(folder / "content.u8", np.uint8, (rows, CONTENT_BYTES)),
        attributes=_mapped(folder / "attributes.i32", np.int32, (products, len(manifest.columns))),
        _ids=_mapped(folder / "ids.utf8", np.uint8, (-1,)),
        _id_ends=_mapped(folder / "ids.i64", np.int64, (products,)),
    )


def read_manifest(folder: Path) -> Manifest:
    """Reads what a snapshot says of itself, without looking at its other files.

    Raises:
        SnapshotError: there is no manifest, or none of this format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotError(f"{folder} is no snapshot: {MANIFEST} is missing") from None
    except ValueError as error:
        raise SnapshotError(f"{path} is no JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise SnapshotError(f"{path}: format_version is {version!r}, this release of Shelfwise reads {FORMAT_VERSION}")
    try:
        partition = content.pop("partition")
        return Manifest(
            encoder=Encoder(**content.pop("encoder")),
            partition=None if partition is None else PartitionRecord(**partition),
            **content,
        )
    except (KeyError, TypeError) as error:
        raise SnapshotError(f"{path} is no manifest of a snapshot: {error}") from error


def check_encoder(made_by: Encoder, expected: Encoder, folder: Path) -> None:
    """Refuses a snapshot of another encoder.

    Raises:
        SnapshotError: with what differs and both hashes.
    """
    for part in ("model", "tokenizer", "preprocessing"):
        found, wanted = getattr(made_by, part), getattr(expected, part)
        if found != wanted:
            raise SnapshotError(
                f"the index in {folder} was made by another encoder: its {part} is {found}, "
                f"that of the queries {wanted}; run `shelfwise index` with this bundle"
            )


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_key(image: bytes) -> bytes:
    """[16 bytes] a hash of an image file."""
    return hashlib.blake2b(image, digest_size=CONTENT_BYTES).digest()


def _id_key(encoded: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big"))


def _mapped(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    if not path.stat().st_size:  # nothing cannot be mapped
        return np.empty([max(size, 0) for size in shape], kind)
    try:
        return np.asarray(np.memmap(path, kind, "r")).reshape(shape)
    except ValueError as error:
        raise SnapshotError(f"{path} does not hold {kind.__name__} {shape}: {error}") from error
