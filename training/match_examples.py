"""Batches for FashionBERT: photos with their own or another product's text, words and patches taken away.

Every photo comes twice, read once: with its own title, and with that of another product of the same category. With
queries, the title may instead be its own and the query another product's, one that this product does not answer. Words
and patches are to be predicted only where all belongs together: of a strange photo a title's words do not follow.
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

QUERY_SHARE = 0.8  # of the pairs that come with a query, once there are queries
WRONG_QUERY_SHARE = 0.5  # of the queries of pairs that do not belong together: there the query alone is wrong
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
        """A batch of B photos with N texts, the first B their own, the others another's, as many as there are.

        Returns:
            pixel_values [B, H, W, 3] uint8; photo [N] int64, the photo of each text; input_ids, attention_mask [N, L]
            int64 of titles with words masked; masked_positions, masked_tokens [B, M] int64; zeroed [N, P] bool; aligned
            [N] bool, whether all belongs together; kin [N] int64, of the titles' products; with queries query_ids,
            query_mask [N, Q] int64, masked whole where a row has none.
        """
        generator = np.random.default_rng(request.seed)
        rows = self.rows[request.rows]
        own = self.examples.product[rows]
        others = self.negatives.draw(rows, generator)
        photo = np.concatenate([np.arange(len(rows)), np.flatnonzero(others != NONE)])
        aligned = np.arange(len(photo)) < len(rows)
        titled = np.concatenate([own, self.examples.product[others[others != NONE]]])
        queries: list[str] = []
        if self.queries is not None:
            queries, titled = self._queries(titled, own[photo], aligned, generator)
        masked = self.masking.mask(self.examples.input_ids[titled], self.word_ids[titled], generator)
        attention_mask, tokens = self.examples.attention_mask[titled], masked.tokens[aligned]
        batch = {
            "pixel_values": augment(self.examples.store.photos(self.examples.photo[rows]), SHIFT, generator),
            "photo": photo,
            "zeroed": mask_patches(len(photo), self.patches, generator),
            "aligned": aligned,
            "kin": self.negatives.kin[titled],
        }
        if queries:
            query_ids, query_mask = encode(self.tokenizer, queries)
            asked = np.array([bool(text) for text in queries])
            query_mask[~asked] = 0
            longest = max(1, query_mask.sum(1).max())
            batch |= {"query_ids": query_ids[:, :longest], "query_mask": query_mask[:, :longest]}
            untitled = asked & (generator.random(len(photo)) < UNTITLED_SHARE)
            attention_mask[untitled, 1:] = 0
            tokens[untitled[aligned]] = NOT_ASKED
        longest = attention_mask.sum(1).max()
        batch |= {
            "input_ids": masked.input_ids[:, :longest],
            "attention_mask": attention_mask[:, :longest],
            "masked_positions": masked.positions[aligned].clip(max=longest - 1),
            "masked_tokens": tokens,
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _queries(
        self, titled: np.ndarray, pictured: np.ndarray, aligned: np.ndarray, generator: np.random.Generator
    ) -> tuple[list[str], np.ndarray]:
        """A query or "" for each row, and the product of its title.

        Args:
            titled: [N] the product whose title stands beside the photo, another's where nothing belongs together.
            pictured: [N] the product of the photo.
            aligned: [N] bool.
            generator: all chance comes from it.

        Returns:
            The queries, and `titled` with the photo's own product where the query alone is another's.
        """
        assert self.queries is not None
        texts, titled = [], titled.copy()
        for row, product in enumerate(titled):
            query: Query | None = None
            if generator.random() < QUERY_SHARE:
                query = self.queries.make(product, generator)
                alone = not aligned[row] and generator.random() < WRONG_QUERY_SHARE
                if alone and query.text and not self.queries.fits(query, pictured[row]):
                    titled[row] = pictured[row]
            texts.append(query.text if query else "")
        return texts, titled
