"""A feed's photos through a bundle's image encoder into the index beside it: RUN/bundle makes RUN/index.

Attributes to filter by are the feed's entities and its category. A large index is measured with titles of the feed,
parsed as queries are: texts are what it will be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from catalogue.feed import Feed
from catalogue.images import ImageError, decode_image
from catalogue.product import ENTITY_GROUPS, join_path
from index.filters import CATEGORY
from index.publish import IndexedProduct, PublishSummary, publish
from training.retrieval import RetrievalBundle
from training.retrieval_examples import make_texts
from training.retrieval_task import embed_texts

from .retrieve import INDEX_FOLDER, encoder_of, vocabulary_of

EMBED_BATCH = 64
QUERIES = 400


def index_feed(feed: Feed, bundle: RetrievalBundle, bundle_folder: Path) -> PublishSummary:
    """Writes the index of a feed beside a bundle; what an earlier one by the same encoder holds is not embedded again.

    Raises:
        catalogue.feed.FeedError: the feed is broken.
        ValueError: two of its products have one id.
    """
    return publish(
        bundle_folder.parent / INDEX_FOLDER,
        indexed_products(feed),
        PhotoEncoder(bundle),
        encoder_of(bundle_folder),
        (*ENTITY_GROUPS, CATEGORY),
        title_queries(feed, bundle),
    )


def indexed_products(feed: Feed) -> Iterator[IndexedProduct]:
    """The products of a feed as the index takes them."""
    for product in feed:
        yield IndexedProduct(product.id, product.images, {**product.entities, CATEGORY: join_path(product.category)})


def title_queries(feed: Feed, bundle: RetrievalBundle) -> np.ndarray:
    """[Q, D] embeddings of the first titles of a feed, of the bundle's samples where it has none."""
    titles = list(islice((product.title for product in feed if product.title), QUERIES))
    vocabulary = vocabulary_of(bundle)
    parsed = [vocabulary.parse(title) for title in titles or [product.title for product in bundle.samples]]
    texts = make_texts(
        bundle.tokenizer, vocabulary, [text.description for text in parsed], [text.entities for text in parsed]
    )
    return embed_texts(bundle.model, texts, np.arange(len(parsed)))


class PhotoEncoder:
    """Image files to unit vectors, decoded on threads; NaN for a file that cannot be read."""

    def __init__(self, bundle: RetrievalBundle) -> None:
        self.encoder = bundle.model.image_encoder.eval()
        self.size = bundle.config.image_encoder.height, bundle.config.image_encoder.width
        self.pool = ThreadPoolExecutor(thread_name_prefix="decode")

    @torch.no_grad()
    def __call__(self, images: Sequence[bytes]) -> np.ndarray:
        """[B, D] float32."""
        vectors = np.full((len(images), self.encoder.config.projection_dim), np.nan, np.float32)
        pixels = list(self.pool.map(self._decode, images))
        readable = [row for row, photo in enumerate(pixels) if photo is not None]
        for start in range(0, len(readable), EMBED_BATCH):
            rows = readable[start : start + EMBED_BATCH]
            batch = np.stack([photo for row in rows if (photo := pixels[row]) is not None])
            vectors[rows] = self.encoder(torch.from_numpy(batch)).numpy()
        return vectors

    def _decode(self, image: bytes) -> np.ndarray | None:
        try:
            return decode_image(image, *self.size)
        except ImageError:
            return None
