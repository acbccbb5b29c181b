"""A feed as arrays: decoded images, token ids and class numbers, memory-mapped, ready to be sliced into batches.

Decoding a product once and training on it for many epochs is what makes two CPU cores enough.  The arrays live in files
(uint8 pixels need H*W*3 bytes an image), so resident memory stays flat however large the feed is, and a run that is
resumed does not decode again.  One example is one image with its product's title; a product without an image is one
example whose image is absent.  Held-out products count once, with their main image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from catalogue.atomic import atomic_folder
from catalogue.feed import Feed
from catalogue.images import ImageError, decode_image
from catalogue.product import Product, Split
from catalogue.taxonomy import Taxonomy
from models.tokenizer import clean, encode

SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNKNOWN_CATEGORY = -1
DECODE_CHUNK = 512


@dataclass(frozen=True)
class Examples:
    """Arrays of N examples; row i of every array is the same example."""

    pixel_values: np.ndarray  # [N, H, W, 3] uint8
    input_ids: np.ndarray  # [N, L] int64
    attention_mask: np.ndarray  # [N, L] int64
    image_present: np.ndarray  # [N] bool
    text_present: np.ndarray  # [N] bool
    labels: np.ndarray  # [N] int64, UNKNOWN_CATEGORY where the feed names none
    splits: np.ndarray  # [N] int8, index into SPLITS

    def rows(self, split: Split) -> np.ndarray:
        """Indices of the examples of a split that have a known category."""
        return np.flatnonzero((self.splits == SPLITS.index(split)) & (self.labels != UNKNOWN_CATEGORY))

    def paired_rows(self, split: Split) -> np.ndarray:
        """Indices of the examples of a split that have both an image and a title."""
        return np.flatnonzero((self.splits == SPLITS.index(split)) & self.image_present & self.text_present)


@dataclass(frozen=True)
class FeedText:
    """What the first pass over a feed collects: everything but the images."""

    titles: list[str]
    categories: list[tuple[str, ...]]
    splits: list[Split]
    images: list[int]  # images per product

    def training_titles(self) -> list[str]:
        """Titles of the training split, for the tokenizer."""
        return [title for title, split in zip(self.titles, self.splits, strict=True) if split == "train" and title]


def read_text(feed: Feed) -> FeedText:
    """Reads titles, categories and splits of a feed.

    Raises:
        catalogue.feed.FeedError: the feed is empty or broken.
    """
    titles, categories, splits, images = [], [], [], []
    for product in feed:
        titles.append(product.title)
        categories.append(product.category)
        splits.append(product.split)
        images.append(len(product.images))
    return FeedText(titles, categories, splits, images)


def prepare_examples(
    feed: Feed, text: FeedText, taxonomy: Taxonomy, tokenizer: Tokenizer, height: int, width: int, folder: Path
) -> Examples:
    """Decodes a feed into memory-mapped arrays under `folder`, or opens them when they are there already.

    Args:
        feed: read once more, for its images.
        text: what `read_text` gave for the same feed.
        taxonomy: gives the class numbers.
        tokenizer: of fixed length L (`models.tokenizer.set_length`).
        height, width: pixels that images are brought to.
        folder: holds the arrays; written whole or not at all.
    """
    recipe = feed_fingerprint(feed) | {
        "height": height,
        "width": width,
        "tokenizer": tokenizer.to_str(),
        "classes": ["\t".join(path) for path in taxonomy.paths],
    }
    if not holds(folder, recipe):
        with atomic_folder(folder) as aside:
            _write(feed, text, taxonomy, tokenizer, height, width, aside)
            (aside / "recipe.json").write_text(json.dumps(recipe))
    return Examples(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in Examples.__dataclass_fields__})


def feed_fingerprint(feed: Feed) -> dict[str, object]:
    """What must be the same for arrays made of a feed to be used again: its file, and how its columns are read."""
    return {
        "feed": str(feed.path.resolve()),
        "size": feed.path.stat().st_size,
        "modified": feed.path.stat().st_mtime_ns,
        "columns": repr(replace(feed.columns, optional=frozenset())) + repr(sorted(feed.columns.optional)),
    }


def holds(folder: Path, recipe: dict[str, object]) -> bool:
    """Whether `folder` was completed by the same recipe (`recipe.json`)."""
    path = folder / "recipe.json"
    return path.is_file() and json.loads(path.read_text()) == recipe


def _write(
    feed: Feed, text: FeedText, taxonomy: Taxonomy, tokenizer: Tokenizer, height: int, width: int, folder: Path
) -> None:
    repeats = np.array(
        [max(1, count) if split == "train" else 1 for count, split in zip(text.images, text.splits, strict=True)]
    )
    total = int(repeats.sum())
    class_of = {path: number for number, path in enumerate(taxonomy.paths)}
    input_ids, attention_mask = encode(tokenizer, text.titles)
    np.save(folder / "input_ids.npy", np.repeat(input_ids, repeats, axis=0))
    np.save(folder / "attention_mask.npy", np.repeat(attention_mask, repeats, axis=0))
    np.save(folder / "text_present.npy", np.repeat([bool(clean(title)) for title in text.titles], repeats))
    labels = [class_of.get(path, UNKNOWN_CATEGORY) for path in text.categories]
    np.save(folder / "labels.npy", np.repeat(np.array(labels, dtype=np.int64), repeats))
    np.save(folder / "splits.npy", np.repeat(np.array([SPLITS.index(s) for s in text.splits], dtype=np.int8), repeats))

    image_present = decode_images(_example_images(feed), total, height, width, folder / "pixel_values.npy")
    np.save(folder / "image_present.npy", image_present)


def decode_images(images: Iterator[bytes], total: int, height: int, width: int, path: Path) -> np.ndarray:
    """Decodes a stream of image files into the memory-mapped array `path`, [total, height, width, 3] uint8.

    Returns:
        [total] bool, which of them could be decoded; the others are white.

    Raises:
        RuntimeError: the stream does not have `total` images: the feed changed since they were counted.
    """
    pixel_values = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(total, height, width, 3))
    present = np.zeros(total, dtype=bool)

    def decode(image: bytes) -> np.ndarray | None:
        try:
            return decode_image(image, height, width) if image else None
        except ImageError:
            return None  # an undecodable image is an absent one

    row = 0
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(images, DECODE_CHUNK)):
            if row + len(chunk) > total:
                raise RuntimeError(f"the feed changed while it was read: {total} images at first, now more")
            for pixels in pool.map(decode, chunk):
                pixel_values[row] = 255 if pixels is None else pixels
                present[row] = pixels is not None
                row += 1
    if row != total:
        raise RuntimeError(f"the feed changed while it was read: {total} images at first, then {row}")
    pixel_values.flush()
    return present


def _example_images(feed: Feed) -> Iterator[bytes]:
    for product in cast("Iterator[Product]", iter(feed)):
        if product.split == "train" and product.images:
            yield from product.images
        else:
            yield product.images[0] if product.images else b""


@dataclass(frozen=True)
class BatchRequest:
    """Which examples make a batch, and the seed of its random choices: a batch is a function of its request alone."""

    rows: np.ndarray
    seed: int


class AugmentedPairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Batches of images (flipped and shifted at random) with their titles and labels.

    Args:
        examples: the arrays.
        rows: indices of the examples to draw from.
        shift: images move by up to this many pixels each way, white coming in.
        token_dropout: share of a title's tokens that are not attended to, so that no single word decides.
    """

    def __init__(self, examples: Examples, rows: np.ndarray, shift: int = 4, token_dropout: float = 0.0) -> None:
        self.examples = examples
        self.rows = rows
        self.shift = shift
        self.token_dropout = token_dropout

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> dict[str, torch.Tensor]:
        """pixel_values [B, H, W, 3] uint8, input_ids and attention_mask [B, L], *_present [B, 1] bool, labels [B]."""
        # Sorted: a memory-mapped file is read front to back, and the order within a batch does not matter.
        rows = np.sort(self.rows[request.rows])
        generator = np.random.default_rng(request.seed)
        examples = self.examples
        pixels = augment(examples.pixel_values[rows], self.shift, generator)
        attention_mask = examples.attention_mask[rows]
        if self.token_dropout:
            attention_mask = drop_tokens(attention_mask, self.token_dropout, generator)
        return {
            "pixel_values": torch.from_numpy(pixels),
            "input_ids": torch.from_numpy(examples.input_ids[rows]),
            "attention_mask": torch.from_numpy(attention_mask),
            "image_present": torch.from_numpy(examples.image_present[rows])[:, None],
            "text_present": torch.from_numpy(examples.text_present[rows])[:, None],
            "labels": torch.from_numpy(examples.labels[rows]),
        }


def drop_tokens(attention_mask: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Masks a share of the tokens, never the first, so that every row attends to something; [B, L] int64 in and out."""
    kept = generator.random(attention_mask.shape) >= share
    kept[:, 0] = True
    return attention_mask * kept


def augment(pixels: np.ndarray, shift: int, generator: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images and shifts each by up to `shift` pixels; [B, H, W, 3] uint8 in and out."""
    batch, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)), constant_values=255)
    out = np.empty_like(pixels)
    offsets = generator.integers(0, 2 * shift + 1, (batch, 2))
    mirrored = np.asarray(generator.random(batch) < 0.5)
    for row, (top, left) in enumerate(offsets):
        crop = padded[row, top : top + height, left : left + width]
        out[row] = crop[:, ::-1] if mirrored[row] else crop
    return out
