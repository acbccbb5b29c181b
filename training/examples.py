"""A store's rows as training examples: one example is one photo with its product's title.

A view: pixels stay in the store's memory-mapped file, tokens are made when a run begins.  A product without a readable
photo is one example whose image is absent.  Held-out products count once, with their main photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer

from catalogue.product import SPLITS, Split
from catalogue.store import Store
from catalogue.taxonomy import Taxonomy
from models.tokenizer import clean, encode

from .sampling import BatchRequest

UNKNOWN_CATEGORY = -1
NO_PHOTO = -1


@dataclass(frozen=True)
class Examples:
    """M examples of a store's P products.

    Attributes:
        store: where pixels are.
        product: [M] int64, the product of each example.
        photo: [M] int64, its photo, `NO_PHOTO` where the image is absent.
        input_ids, attention_mask: [P, L] int64, the titles.
        text_present: [P] bool.
        labels: [P] int64 class numbers, `UNKNOWN_CATEGORY` where the feed names none.
    """

    store: Store
    product: np.ndarray
    photo: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray
    text_present: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.product)

    @cached_property
    def image_present(self) -> np.ndarray:
        """[M] bool."""
        return self.photo != NO_PHOTO

    def rows(self, split: Split) -> np.ndarray:
        """Indices of the examples of a split that have a known category."""
        return np.flatnonzero(self.in_split(split) & (self.labels[self.product] != UNKNOWN_CATEGORY))

    def paired_rows(self, split: Split) -> np.ndarray:
        """Indices of the examples of a split that have both an image and a title."""
        return np.flatnonzero(self.in_split(split) & self.image_present & self.text_present[self.product])

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Examples as they are: pixel_values [B, H, W, 3] uint8, input_ids and attention_mask [B, L] int64,
        image_present and text_present [B, 1] bool, labels [B] int64."""
        product = self.product[rows]
        return {
            "pixel_values": torch.from_numpy(self.store.photos(self.photo[rows])),
            "input_ids": torch.from_numpy(self.input_ids[product]),
            "attention_mask": torch.from_numpy(self.attention_mask[product]),
            "image_present": torch.from_numpy(self.image_present[rows])[:, None],
            "text_present": torch.from_numpy(self.text_present[product])[:, None],
            "labels": torch.from_numpy(self.labels[product]),
        }

    def in_split(self, split: Split) -> np.ndarray:
        return self.store.splits[self.product] == SPLITS.index(split)


def make_examples(store: Store, tokenizer: Tokenizer, taxonomy: Taxonomy | None = None) -> Examples:
    """The examples of a store.

    Args:
        store: the decoded feed.
        tokenizer: of fixed length L (`models.tokenizer.set_length`).
        taxonomy: gives the class numbers; without one no category is known.
    """
    usable = np.flatnonzero(store.readable)
    main = np.full(len(store), NO_PHOTO)
    main[store.photo_product[usable[::-1]]] = usable[::-1]  # the first of a product is assigned last
    training = store.splits == SPLITS.index("train")
    several = usable[training[store.photo_product[usable]]]
    once = np.flatnonzero(~training | (main == NO_PHOTO))
    product = np.concatenate([store.photo_product[several], once])
    photo = np.concatenate([several, main[once]])
    order = np.argsort(product, kind="stable")
    class_of = {path: number for number, path in enumerate(taxonomy.paths)} if taxonomy is not None else {}
    input_ids, attention_mask = encode(tokenizer, store.titles)
    return Examples(
        store,
        product[order],
        photo[order],
        input_ids,
        attention_mask,
        np.array([bool(clean(title)) for title in store.titles]),
        np.array([class_of.get(path, UNKNOWN_CATEGORY) for path in store.categories], np.int64),
    )


def training_titles(store: Store) -> list[str]:
    """Titles of the training split, for the tokenizer."""
    return [store.titles[row] for row in store.rows("train") if store.titles[row]]


class AugmentedPairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Batches of images (flipped and shifted at random) with their titles and labels.

    Args:
        examples: where they come from.
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
        """A batch as `Examples.batch` gives it, augmented."""
        # Sorted: a memory-mapped file is read front to back, and the order within a batch does not matter.
        batch = self.examples.batch(np.sort(self.rows[request.rows]))
        generator = np.random.default_rng(request.seed)
        batch["pixel_values"] = torch.from_numpy(augment(batch["pixel_values"].numpy(), self.shift, generator))
        if self.token_dropout:
            mask = drop_tokens(batch["attention_mask"].numpy(), self.token_dropout, generator)
            batch["attention_mask"] = torch.from_numpy(mask)
        return batch


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
