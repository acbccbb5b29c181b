"""A feed decoded once for each image size, for every system and every run that trains on it.

    FOLDER/KEY/products.parquet            a row a product: everything but its images
    FOLDER/KEY/80x64/pixel_values.npy      [N, 80, 64, 3] uint8, a row a photo, memory-mapped
    FOLDER/KEY/80x64/photos.npz            of each photo: could it be read, and a hash of its pixels

KEY follows from the feed's files and how its columns are read, so a resumed run, another system and another tokenizer
decode nothing again. Resident memory stays flat however large the feed is: pixels stay on the disk. What a system
trains on is a view of these rows. Two things that held-out figures hang on are settled here: a feed without validation
products keeps some of its training products aside, and `unseen` tells which held-out products are new in title and
photo, since catalogues repeat both.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalogue.atomic import atomic_folder
from catalogue.feed import Feed, FeedError
from catalogue.images import ImageError, decode_image
from catalogue.product import ENTITY_GROUPS, SPLITS, VAL_SHARE, Split, hash_share

DECODE_CHUNK = 512
WHITE = 255


@dataclass(frozen=True)
class Store:
    """P products with N photos, a product's photos one after the other.

    Attributes:
        feed: name of the feed's file.
        digest: sha256 of all that the feed says, images included.
        ids, titles: [P]; a missing title is "".
        categories: [P] paths; () when unknown.
        entities: [P] values by entity group; "" when absent.
        splits: [P] int8, index into `SPLITS`.
        photo_product: [N] int64, whose photo it is.
        readable: [N] bool; pixels of the others are white.
        photo_keys: [N] uint64, hashes of pixels; equal for photos that are equal pixel for pixel.
        pixel_values: [N, H, W, 3] uint8, memory-mapped.
        notes: what whoever trains on it should be told, a sentence each.
    """

    feed: str
    digest: str
    ids: list[str]
    titles: list[str]
    categories: list[tuple[str, ...]]
    entities: dict[str, list[str]]
    splits: np.ndarray
    photo_product: np.ndarray
    readable: np.ndarray
    photo_keys: np.ndarray
    pixel_values: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photos."""
        return self.pixel_values.shape[1], self.pixel_values.shape[2]

    def rows(self, split: Split) -> np.ndarray:
        """Indices of the products of a split."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def photos(self, rows: np.ndarray) -> np.ndarray:
        """Pixels [B, H, W, 3] uint8 of some photos; white where a row is negative."""
        pixels = self.pixel_values[np.maximum(rows, 0)] if len(self.pixel_values) else self._white(len(rows))
        pixels[rows < 0] = WHITE
        return pixels

    @cached_property
    def unseen(self) -> np.ndarray:
        """[P] bool: held-out products whose title and photos no training product has."""
        training = self.splits == SPLITS.index("train")
        titles = {title_key(self.titles[row]) for row in np.flatnonzero(training)} - {""}
        new = np.array([title_key(title) not in titles for title in self.titles], bool) & ~training
        usable = np.flatnonzero(self.readable)
        of_training = training[self.photo_product[usable]]
        seen = np.isin(self.photo_keys[usable], self.photo_keys[usable[of_training]])
        new[self.photo_product[usable[seen]]] = False
        return new

    def keep_validation(self) -> None:
        """Keeps training products aside, by the hash of their ids, where the feed has none to validate on."""
        validation = SPLITS.index("val")
        if (self.splits == validation).any():
            return
        candidates = self.rows("train")
        # Not the hash that `split_of` looks at: of the training products none has a small one.
        aside = np.array([row for row in candidates if hash_share("validation " + self.ids[row]) < VAL_SHARE], int)
        if not len(aside) and len(candidates) > 1:
            aside = candidates[:1]
        self.splits[aside] = validation
        self.notes.append(
            f"no product is in the validation split: {len(aside)} of the {len(candidates)} training products, by the "
            "hash of their ids, are kept aside to choose with"
        )

    def _white(self, rows: int) -> np.ndarray:
        return np.full((rows, *self.pixel_values.shape[1:]), WHITE, np.uint8)


def unseen_products(feed: Feed) -> set[str]:
    """Ids of the held-out products of a feed whose title and image files no training product has.

    For whoever asks a server about a feed and has no decoded store: photos are told apart by their files.
    """
    titles: set[str] = set()
    files: set[bytes] = set()
    held_out: dict[str, tuple[str, list[bytes]]] = {}
    for product in feed:
        title, keys = title_key(product.title), [blake2b(image, digest_size=8).digest() for image in product.images]
        if product.split == "train":
            titles.add(title)
            files.update(keys)
        else:
            held_out[product.id] = (title, keys)
    titles.discard("")
    return {name for name, (title, keys) in held_out.items() if title not in titles and files.isdisjoint(keys)}


def title_key(title: str) -> str:
    """What two titles have in common that are the same words: lower case, single spaces."""
    return " ".join(title.lower().split())


def open_store(feed: Feed, folder: Path, height: int, width: int) -> Store:
    """The decoded form of a feed, made under `folder` where it is not there yet.

    Args:
        feed: read once for its products and once for each size, then no more.
        folder: holds the stores of any number of feeds; what is written is whole or not there.
        height, width: pixels that photos are brought to.

    Raises:
        FeedError: the feed is broken or empty, none of its training photos can be read, or one of its photos cannot
            while the feed is read with on_error="raise".
    """
    home = folder / sha256(feed.fingerprint().encode()).hexdigest()[:16]
    if not home.is_dir():
        with atomic_folder(home) as aside:
            _write_products(feed, aside)
    table = pq.read_table(home / "products.parquet")
    counts = table["photos"].to_numpy()
    photos = home / f"{height}x{width}"
    if not photos.is_dir():
        with atomic_folder(photos) as aside:
            _write_photos(feed, table, aside, height, width)
    arrays, unreadable = np.load(photos / "photos.npz"), json.loads((photos / "unreadable.json").read_text())
    store = Store(
        feed=feed.path.name,
        digest=table.schema.metadata[b"digest"].decode(),
        ids=table["id"].to_pylist(),
        titles=table["title"].to_pylist(),
        categories=[tuple(path) for path in table["category"].to_pylist()],
        entities={group: table[group].to_pylist() for group in ENTITY_GROUPS},
        splits=table["split"].to_numpy().copy(),
        photo_product=np.repeat(np.arange(len(counts)), counts),
        readable=arrays["readable"],
        photo_keys=arrays["keys"],
        pixel_values=np.load(photos / "pixel_values.npy", mmap_mode="r")[: len(arrays["readable"])],
    )
    skipped = Counter(json.loads(table.schema.metadata[b"skipped"]))
    store.notes.extend(f"{rows} rows left out: {reason}" for reason, rows in skipped.most_common())
    if unreadable:
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(unreadable).most_common())
        store.notes.append(f"{sum(unreadable.values())} of {len(store.readable)} images could not be read: {kinds}")
    return store


def _write_products(feed: Feed, folder: Path) -> None:
    columns: dict[str, list[object]] = {name: [] for name in ("id", "title", "category", "split", "photos")}
    columns |= {group: [] for group in ENTITY_GROUPS}
    digest = sha256()
    for product in feed:
        row = {
            "id": product.id,
            "title": product.title,
            "category": list(product.category),
            "split": SPLITS.index(product.split),
            "photos": len(product.images),
            **{group: product.entities.get(group, "") for group in ENTITY_GROUPS},
        }
        for name, value in row.items():
            columns[name].append(value)
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        for image in product.images:
            digest.update(blake2b(image).digest())
    if not columns["id"]:
        raise FeedError(f"{feed.path} has no products")
    types = {"category": pa.list_(pa.string()), "split": pa.int8(), "photos": pa.int64()}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
    metadata = {"digest": digest.hexdigest(), "skipped": json.dumps(feed.summary.skipped)}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "products.parquet")


def _write_photos(feed: Feed, table: pa.Table, folder: Path, height: int, width: int) -> None:
    total = int(sum(table["photos"].to_pylist()))
    path = folder / "pixel_values.npy"
    pixel_values = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(max(total, 1), height, width, 3))
    readable, keys = np.zeros(total, bool), np.zeros(total, np.uint64)
    unreadable: Counter[str] = Counter()
    training_photos = training_readable = 0

    def decode(image: bytes) -> np.ndarray | ImageError:
        try:
            return decode_image(image, height, width)
        except ImageError as error:
            return error

    photos = ((product.id, product.split, image) for product in feed for image in product.images)
    row = 0
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(photos, DECODE_CHUNK)):
            if row + len(chunk) > total:
                raise FeedError(f"{feed.path} changed while it was read: {total} images at first, now more")
            for (product, split, _), pixels in zip(
                chunk, pool.map(decode, (image for *_, image in chunk)), strict=True
            ):
                training_photos += split == "train"
                if isinstance(pixels, ImageError):
                    if feed.on_error == "raise":
                        raise FeedError(f"{feed.path}, product {product!r}: {pixels}") from pixels
                    unreadable[image_kind(pixels)] += 1
                    pixels = np.full((height, width, 3), WHITE, np.uint8)
                else:
                    readable[row] = True
                    training_readable += split == "train"
                pixel_values[row] = pixels
                keys[row] = int.from_bytes(blake2b(pixels.tobytes(), digest_size=8).digest(), "big")
                row += 1
    if row != total:
        raise FeedError(f"{feed.path} changed while it was read: {total} images at first, then {row}")
    if training_photos and not training_readable:
        kinds = ", ".join(f"{kind} {count}" for kind, count in unreadable.most_common())
        raise FeedError(f"{feed.path}: none of its {training_photos} training images can be read: {kinds}")
    pixel_values.flush()
    np.savez(folder / "photos.npz", readable=readable, keys=keys)
    (folder / "unreadable.json").write_text(json.dumps(unreadable))


def image_kind(error: ImageError) -> str:
    """The format of an image that could not be read, as far as it was recognised."""
    return error.format or "unknown"
