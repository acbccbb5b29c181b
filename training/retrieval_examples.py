"""Pairs of a photo and what is said of it: a description, and the entities that the feed or the title names.

A title is parsed as a query will be (catalogue/entities.py): brand and colour go, the description stays. In training a
text comes in one of three views, drawn anew every time, so that the model knows all ways in which people will ask:
what the feed knows of the product, some of it left out at random; what a title names and no more; and the title alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from catalogue.entities import ABSENT, EntityVocabulary
from catalogue.product import Split
from catalogue.store import Store
from models.tokenizer import encode

from .examples import Examples, augment, make_examples
from .sampling import BatchRequest

SHIFT = 4


@dataclass(frozen=True)
class TextViews:
    """Shares of the training texts that are seen otherwise than the feed gives them.

    Attributes:
        title_entities: only the entities that the title names.
        title: the whole title as the description, and no entity.
        entity_dropout: of each entity on its own, where all of the feed's are seen.
    """

    title_entities: float = 0.3
    title: float = 0.2
    entity_dropout: float = 0.1


@dataclass(frozen=True)
class Texts:
    """The texts of P products in one view.

    Attributes:
        input_ids, attention_mask: [P, L] int64.
        described: [P] bool.
        description_keys: [P] int64, equal where the descriptions are.
        entity_ids: [P, E] int64.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    described: np.ndarray
    description_keys: np.ndarray
    entity_ids: np.ndarray

    def of(self, products: np.ndarray) -> Texts:
        """The texts of some products."""
        return Texts(*(getattr(self, field.name)[products] for field in fields(self)))

    def batch(self, products: np.ndarray) -> dict[str, Tensor]:
        """As tensors, one row a product [B, …]."""
        chosen = self.of(products)
        columns = {"described": chosen.described[:, None], "description_keys": chosen.description_keys[:, None]}
        return {
            field.name: torch.from_numpy(columns.get(field.name, getattr(chosen, field.name))) for field in fields(self)
        }


@dataclass(frozen=True)
class RetrievalExamples:
    """Examples with their texts.

    Attributes:
        examples: which photos and products there are.
        feed: descriptions, with the entities that the feed names: what a product's text is.
        asked: descriptions, with the entities that the titles name: what a query by its title is.
        titles: whole titles, without entities.
        keys: [P] int64, equal for products whose description and entities are equal: no negatives of each other.
    """

    examples: Examples
    feed: Texts
    asked: Texts
    titles: Texts
    keys: np.ndarray

    @property
    def store(self) -> Store:
        """Where pixels are."""
        return self.examples.store

    def rows(self, split: Split) -> np.ndarray:
        """Indices of the examples of a split that have an image and something that is said of it."""
        rows = np.flatnonzero(self.examples.in_split(split) & self.examples.image_present)
        products = self.examples.product[rows]
        return rows[self.feed.described[products] | self.feed.entity_ids[products].any(1)]

    def held_out(self, split: Split) -> np.ndarray:
        """One example of every product of a split, that of its first photo."""
        rows = self.rows(split)
        return rows[np.unique(self.examples.product[rows], return_index=True)[1]]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Photos [B, H, W, 3] uint8 of some examples [B]."""
        return self.store.photos(self.examples.photo[rows])


def make_texts(
    tokenizer: Tokenizer,
    vocabulary: EntityVocabulary,
    descriptions: Sequence[str],
    entities: Sequence[Mapping[str, str]],
) -> Texts:
    """Texts as a model takes them.

    Args:
        tokenizer: of fixed length L.
        vocabulary: numbers entities.
        descriptions: [P], "" for none.
        entities: [P] values by group.
    """
    input_ids, attention_mask = encode(tokenizer, descriptions)
    numbers: dict[str, int] = {}
    entity_ids = np.array([vocabulary.numbers(named) for named in entities], np.int64)
    return Texts(
        input_ids,
        attention_mask,
        np.array([bool(description.strip()) for description in descriptions]),
        np.array([numbers.setdefault(text.casefold(), len(numbers)) for text in descriptions], np.int64),
        entity_ids.reshape(len(entities), len(vocabulary.groups)),
    )


def make_retrieval_examples(store: Store, tokenizer: Tokenizer, vocabulary: EntityVocabulary) -> RetrievalExamples:
    """The examples of a store; arguments as in `make_examples`."""
    parsed = [vocabulary.parse(title) for title in store.titles]
    of_feed = [{group: store.entities[group][product] for group in vocabulary.groups} for product in range(len(store))]
    # One call for all, so that a title that is its own description has its key.
    descriptions = [text.description for text in parsed] + store.titles
    texts = make_texts(tokenizer, vocabulary, descriptions, of_feed + [{}] * len(store))
    feed, titles = (texts.of(np.arange(first, first + len(store))) for first in (0, len(store)))
    asked = replace(feed, entity_ids=np.array([vocabulary.numbers(text.entities) for text in parsed], np.int64))
    said = np.column_stack([feed.description_keys, feed.entity_ids])
    keys = np.unique(said, axis=0, return_inverse=True)[1].ravel()
    return RetrievalExamples(make_examples(store, tokenizer), feed, asked, titles, keys)


class RetrievalPairs(Dataset[dict[str, Tensor]]):
    """Batches of photos, mirrored and shifted at random, with their texts in a view drawn for each.

    Args:
        examples: where they come from.
        rows: indices of the examples to draw from.
        views: how often which.
        features: [all examples, C] float32, what a frozen backbone makes of the photos, given instead of them.
    """

    def __init__(
        self, examples: RetrievalExamples, rows: np.ndarray, views: TextViews, features: np.ndarray | None = None
    ) -> None:
        self.examples = examples
        self.rows = rows
        self.views = views
        self.features = features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> dict[str, Tensor]:
        """images ([B, H, W, 3] uint8, or features [B, C]), what `Texts.batch` gives, and keys [B, 1] int64."""
        examples, views = self.examples, self.views
        rows = np.sort(self.rows[request.rows])  # a memory-mapped file is read front to back
        products = examples.examples.product[rows]
        generator = np.random.default_rng(request.seed)
        batch = examples.feed.batch(products)
        draw = torch.from_numpy(generator.random((len(rows), 1)))
        dropped = torch.from_numpy(generator.random(batch["entity_ids"].shape) < views.entity_dropout)
        batch["entity_ids"] = batch["entity_ids"].masked_fill(dropped, ABSENT)
        for below, texts in ((views.title + views.title_entities, examples.asked), (views.title, examples.titles)):
            seen = texts.batch(products)
            # A product whose title says nothing is seen as the feed gives it.
            here = (draw < below) & (seen["described"] | (seen["entity_ids"] > 0).any(1, keepdim=True))
            batch = {name: torch.where(here, seen[name], tensor) for name, tensor in batch.items()}
        images = augment(examples.pixels(rows), SHIFT, generator) if self.features is None else self.features[rows]
        return {
            "images": torch.from_numpy(images),
            **batch,
            "keys": torch.from_numpy(examples.keys[products])[:, None],
        }
