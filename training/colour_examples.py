"""The photos of a store with their colours, and the batches that the colour matcher is trained on.

What a batch holds is a function of its request alone: which groups,
which photos of them, how a seller would write the colours, in which order; so a resumed run goes on as if unbroken.
Half of a batch's groups are real ones (titles that differ in the colour word), half are drawn within a category, some
of them with labels that no photo shows. Pixels are mirrored, shifted and blurred, which all keep colour.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from catalogue.colour_groups import ColourGroup, ColourGroups, ColourVariant, variant_of
from catalogue.feed import FeedError
from catalogue.label_noise import LabelNoise, written_labels
from catalogue.store import Store
from models.tokenizer import encode_to_longest

from .examples import augment
from .sampling import BatchRequest
from .train import Batch

SHIFT = 4
BLUR_SHARE = 0.25
BLUR_SIGMA = 1.5

Clean = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class ProductMix:
    """Which products a batch is drawn from.

    Attributes:
        real: share of real groups; the others are drawn within a category.
        distractors: share of the drawn ones that get labels which no photo shows. With fewer, a matcher trusts that
            every label is somebody's, and is worse than a plain classifier where that is not so.
        most_distractors: such labels at most.
    """

    real: float = 0.5
    distractors: float = 0.5
    most_distractors: int = 6


@dataclass(frozen=True)
class ColourExamples:
    """N photos with what the feed says of them; row i is photo i of the store."""

    store: Store  # whose N photos they are
    variants: tuple[ColourVariant | None, ...]  # [N], None where the photo cannot be used

    def rows(self, split: str) -> np.ndarray:
        """Indices of the photos of a split."""
        return np.array([row for row, variant in enumerate(self.variants) if variant and variant.split == split], int)

    def colours(self) -> list[str]:
        """Names of the colours of the training split, sorted."""
        return sorted({variant.colour for variant in self.variants if variant and variant.split == "train"})


def make_colour_examples(store: Store) -> ColourExamples:
    """The photos of a store with their colours; products without a base colour are passed over.

    Raises:
        FeedError: the feed has no product with a colour and a photo that can be read.
    """
    labels = store.entities["base_colour"]
    variants = [
        variant_of(store.ids[product], store.titles[product], store.categories[product], labels[product])
        if readable and labels[product]
        else None
        for product, readable in zip(store.photo_product.tolist(), store.readable.tolist(), strict=True)
    ]
    if not any(variants):
        raise FeedError(f"{store.feed} has no product with both an image and a base_colour")
    return ColourExamples(store, tuple(variants))


class ColourPairs(Dataset[Batch]):
    """Batches of single photos, each with its colour as a seller would write it: for the contrastive stage."""

    def __init__(self, examples: ColourExamples, tokenizer: Tokenizer, noise: LabelNoise, clean: Clean) -> None:
        self.examples = examples
        self.tokenizer = tokenizer
        self.noise = noise
        self.clean = clean
        self.rows = examples.rows("train")
        self.number = {colour: number for number, colour in enumerate(examples.colours())}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """pixel_values [B, H, W, 3] uint8, input_ids and attention_mask [B, l], l of the longest, colours [B] int64."""
        rows = np.sort(self.rows[request.rows])
        chance = random.Random(request.seed)
        variants = [variant for row in rows if (variant := self.examples.variants[row])]
        labels = [self.clean(written_labels([variant.colour], self.noise, chance))[0] for variant in variants]
        input_ids, attention_mask = encode_to_longest(self.tokenizer, labels)
        pixels = augment_photos(self.examples.store.photos(rows), np.random.default_rng(request.seed))
        return {
            "pixel_values": torch.from_numpy(pixels),
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "colours": torch.tensor([self.number[variant.colour] for variant in variants]),
        }


class ColourProducts(Dataset[Batch]):
    """Ragged batches of products: photos, labels, and which label is whose.

    An epoch has as many products as the training split has photos, divided by the photos of an average product, so that
    an epoch costs the same here as in `ColourPairs`.

    Args:
        examples: the photos.
        tokenizer: of fixed length.
        noise: how labels are written.
        clean: cleans the labels of one product.
        mix: which products there are.
    """

    def __init__(
        self, examples: ColourExamples, tokenizer: Tokenizer, noise: LabelNoise, clean: Clean, mix: ProductMix
    ) -> None:
        self.examples = examples
        self.tokenizer = tokenizer
        self.noise = noise
        self.clean = clean
        self.mix = mix
        self.groups = ColourGroups(examples.variants, "train")
        if not len(self.groups) and not self.groups.has_harder:
            raise FeedError("the training split has no product in two colours and no category of three")
        chance = random.Random(0)
        drawn = [self._group(chance) for _ in range(256)]
        self.length = round(len(examples.rows("train")) * len(drawn) / sum(len(group.photos) for group in drawn))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, request: BatchRequest) -> Batch:
        """A batch of P products with N photos and M labels in all, see `product_batch`; pixel_values are augmented."""
        batch = self.without_photos(request)
        photos = self.examples.store.photos(batch["photos"].numpy())
        pixels = augment_photos(photos, np.random.default_rng(request.seed))
        return {"pixel_values": torch.from_numpy(pixels)} | batch

    def without_photos(self, request: BatchRequest) -> Batch:
        """The batch with the row numbers of its photos (`photos` [N]) in place of their pixels."""
        chance = random.Random(request.seed)
        groups = [self._group(chance) for _ in request.rows]
        labels = [written_labels(group.colours, self.noise, chance) for group in groups]
        return product_batch(groups, labels, self.tokenizer, self.clean)

    def _group(self, chance: random.Random) -> ColourGroup:
        real = len(self.groups) and (chance.random() < self.mix.real or not self.groups.has_harder)
        if real:
            return self.groups.real_group(chance.randrange(len(self.groups)), chance)
        extra = chance.randint(1, self.mix.most_distractors) if chance.random() < self.mix.distractors else 0
        return self.groups.harder(chance, distractors=extra)


def product_batch(
    groups: Sequence[ColourGroup], labels: Sequence[Sequence[str]], tokenizer: Tokenizer, clean: Clean
) -> Batch:
    """Everything of a ragged batch but the photos.

    Args:
        groups: P products.
        labels: of each product its m labels as they were written.
        tokenizer: of fixed length.
        clean: cleans the labels of one product.

    Returns:
        input_ids and attention_mask [U, l] of the different labels, l of the longest, label_index [M] into them,
        cu_images and cu_labels [P + 1] int32 cumulative lengths, photos [N] row numbers, answers [N] index into the
        labels of the product, positives [N, U] bool, which of the texts were written for the colour of each photo.
    """
    cleaned = [clean(product) for product in labels]
    number = {text: place for place, text in enumerate(dict.fromkeys(text for product in cleaned for text in product))}
    input_ids, attention_mask = encode_to_longest(tokenizer, list(number))
    written: dict[str, set[int]] = {}  # a colour is written in several ways
    for group, product in zip(groups, cleaned, strict=True):
        for colour, text in zip(group.colours, product, strict=True):
            written.setdefault(colour, set()).add(number[text])
    positives = np.zeros((sum(len(group.photos) for group in groups), len(number)), bool)
    shown = (group.colours[answer] for group in groups for answer in group.answers)
    for photo, colour in enumerate(shown):
        positives[photo, list(written[colour])] = True
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "photos": torch.tensor([row for group in groups for row in group.photos]),
        "label_index": torch.tensor([number[text] for product in cleaned for text in product]),
        "cu_images": cumulative_lengths([len(group.photos) for group in groups]),
        "cu_labels": cumulative_lengths([len(product) for product in cleaned]),
        "answers": torch.tensor([answer for group in groups for answer in group.answers]),
        "positives": torch.from_numpy(positives),
    }


def cumulative_lengths(lengths: Sequence[int]) -> torch.Tensor:
    """[P + 1] int32: where each of P pieces begins, and the end."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def augment_photos(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirrors, shifts and (a share of them) blurs photos; [B, H, W, 3] uint8 in and out."""
    out = augment(pixels, SHIFT, generator)
    blurred = np.flatnonzero(generator.random(len(out)) < BLUR_SHARE)
    for part in np.array_split(blurred, 4):  # four strengths a batch: one call each, not one a photo
        sigma = generator.uniform(0.3, BLUR_SIGMA)
        if len(part):
            out[part] = gaussian_filter(out[part], (0, sigma, sigma, 0), mode="nearest", truncate=2.5)
    return out
