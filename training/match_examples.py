"""Batches for FashionBERT: photos with their own or another product's text, words and patches taken away.

Half of the pairs do not belong together: the photo is one of another product of the same category. With queries, a pair
may instead be right and the query another product's, one that this product does not answer. Words and patches are to be
predicted only where all belongs together: of a strange photo a title's words do not follow.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from models.tokenizer import encode

from .examples import Examples, augment
from .masking import NOT_ASKED, WordMasking, mask_patches, word_ids
from .negatives import NONE, SameCategoryNegatives
from .queries import Query, QueryMaker
from .sampling import BatchRequest

WRONG_SHARE = 0.5
QUERY_SHARE = 0.8  # of the pairs that come with a query, once there are queries
UNTITLED_SHARE = 0.1  # of those whose title is left out, so that a query alone can be asked about
SHIFT = 3


class MaskedPairs(Dataset[dict[str, torch.Tensor]]):
    """Pairs of a title and a photo, with queries when there is somebody to make them.

    Args:
        examples: where they come from.
        rows: indices of those to learn from; each has a photo and a title.
        tokenizer: of the examples.
        patches: P, patches of a photo.
        whole_words: whole words are masked, not single tokens.
        queries: makes queries; None: there are none.
    """

    def __init__(
        self,
        examples: Examples,
        rows: np.ndarray,
        tokenizer: Tokenizer,
        patches: int,
        *,
        whole_words: bool,
        queries: QueryMaker | None = None,
    ) -> None:
        self.examples = examples
        self.rows = rows
        self.tokenizer = tokenizer
        self.patches = patches
        self.masking = WordMasking(tokenizer, whole_words=whole_words)
        self.word_ids = word_ids(tokenizer, examples.store.titles)
        self.negatives = SameCategoryNegatives(examples, rows)
        self.queries = queries

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> dict[str, torch.Tensor]:
        """A batch.

        Returns:
            pixel_values [B, H, W, 3] uint8; input_ids, attention_mask [B, L] int64 of titles with words masked;
            masked_positions, masked_tokens [B, M] int64; zeroed [B, P] bool; aligned [B] bool, whether all belongs
            together; with queries query_ids, query_mask [B, Q] int64, masked whole where a row has none.
        """
        generator = np.random.default_rng(request.seed)
        rows = self.rows[request.rows]
        products = self.examples.product[rows]
        others = self.negatives.draw(rows, generator)
        wrong = (generator.random(len(rows)) < WRONG_SHARE) & (others != NONE)
        queries = self._queries(products, self.examples.product[others], wrong, generator) if self.queries else None
        wrong_query = queries[1] if queries else np.zeros(len(rows), bool)
        photos = self.examples.photo[np.where(wrong & ~wrong_query, others, rows)]
        masked = self.masking.mask(self.examples.input_ids[products], self.word_ids[products], generator)
        attention_mask, tokens = self.examples.attention_mask[products], masked.tokens
        tokens[wrong] = NOT_ASKED
        batch = {
            "pixel_values": augment(self.examples.store.photos(photos), SHIFT, generator),
            "zeroed": mask_patches(len(rows), self.patches, generator),
            "aligned": ~wrong,
        }
        if queries:
            query_ids, query_mask = encode(self.tokenizer, queries[0])
            asked = np.array([bool(text) for text in queries[0]])
            query_mask[~asked] = 0
            longest = max(1, query_mask.sum(1).max())
            batch |= {"query_ids": query_ids[:, :longest], "query_mask": query_mask[:, :longest]}
            untitled = asked & (generator.random(len(rows)) < UNTITLED_SHARE)
            attention_mask[untitled, 1:] = 0
            tokens[untitled] = NOT_ASKED
        longest = attention_mask.sum(1).max()
        batch |= {
            "input_ids": masked.input_ids[:, :longest],
            "attention_mask": attention_mask[:, :longest],
            "masked_positions": masked.positions.clip(max=longest - 1),
            "masked_tokens": tokens,
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _queries(
        self, products: np.ndarray, others: np.ndarray, wrong: np.ndarray, generator: np.random.Generator
    ) -> tuple[list[str], np.ndarray]:
        """A query or "" for each product, and [B] bool, which of the wrong pairs are wrong by their query alone."""
        assert self.queries is not None
        texts, wrong_query = [], np.zeros(len(products), bool)
        for row, (product, other) in enumerate(zip(products, others, strict=True)):
            query: Query | None = None
            if generator.random() < QUERY_SHARE:
                query = self.queries.make(product, generator)
                if wrong[row] and generator.random() < 0.5:
                    stranger = self.queries.make(other, generator)
                    if stranger.text and not self.queries.fits(stranger, product):
                        query, wrong_query[row] = stranger, True
            texts.append(query.text if query else "")
        return texts, wrong_query
