"""Words and patches taken away, to be predicted from what is left.

Whole-word masking (BERT's release of May 2019): what is drawn is a word, and all of its tokens go together, so that
none can be guessed from its other pieces. BERT's shares: 15 % of the words; of their tokens 80 % become [MASK], 10 %
another token, 10 % stay as they are. The tokenizer itself says which tokens make a word, so byte-level BPE and
WordPiece need no rules of their own. Patches are drawn one by one, 10 % of them (FashionBERT, section 3.2).

Sources: Devlin et al., "BERT", 2019, appendix A.1; Gao et al., "FashionBERT", SIGIR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from models.tokenizer import clean

WORD_SHARE = 0.15
PATCH_SHARE = 0.10
MASKED, REPLACED = 0.8, 0.1  # of the tokens drawn; the rest stays
NO_WORD = -1
NOT_ASKED = -100  # what PyTorch's cross-entropy leaves out


@dataclass(frozen=True)
class MaskedTokens:
    """Texts with words taken away.

    Attributes:
        input_ids: [B, L] int64, as the model sees them.
        positions: [B, M] int64, where a token is to be predicted; 0 behind the last.
        tokens: [B, M] int64, what stood there; `NOT_ASKED` behind the last.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    tokens: np.ndarray


class WordMasking:
    """Masks whole words, or single tokens, of texts that a tokenizer encoded.

    Args:
        tokenizer: whose [MASK] stands in; the byte-level one has none, but an [UNK] that no text contains.
        whole_words: all tokens of a word go together.

    Raises:
        ValueError: the tokenizer has neither.
    """

    def __init__(self, tokenizer: Tokenizer, *, whole_words: bool = True) -> None:
        known = [tokenizer.token_to_id(name) for name in ("[MASK]", "[UNK]")]
        stand_in = next((token for token in known if token is not None), None)
        if stand_in is None:
            raise ValueError("the tokenizer has neither [MASK] nor [UNK] to stand for a masked word")
        self.mask_token: int = stand_in
        special = tokenizer.get_added_tokens_decoder()
        self.ordinary = np.array([token for token in range(tokenizer.get_vocab_size()) if token not in special])
        self.whole_words = whole_words

    def mask(self, input_ids: np.ndarray, word_ids: np.ndarray, generator: np.random.Generator) -> MaskedTokens:
        """Draws what is to be predicted.

        Args:
            input_ids: [B, L] int64.
            word_ids: [B, L] int64, from `word_ids`.
            generator: all chance comes from it.
        """
        rows, length = input_ids.shape
        words = word_ids if self.whole_words else np.where(word_ids == NO_WORD, NO_WORD, np.arange(length))
        draws = generator.random((rows, length))
        drawn = (np.take_along_axis(draws, np.maximum(words, 0), 1) < WORD_SHARE) & (words != NO_WORD)
        most = largest_masked(length)
        drawn &= drawn.cumsum(1) <= most
        positions, tokens = np.zeros((rows, most), np.int64), np.full((rows, most), NOT_ASKED)
        row, place = np.nonzero(drawn)
        nth = drawn.cumsum(1)[row, place] - 1
        positions[row, nth], tokens[row, nth] = place, input_ids[row, place]
        fate = generator.random(len(row))
        seen = np.where(fate < MASKED + REPLACED, generator.choice(self.ordinary, len(row)), input_ids[row, place])
        masked = input_ids.copy()
        masked[row, place] = np.where(fate < MASKED, self.mask_token, seen)
        return MaskedTokens(masked, positions, tokens)


def largest_masked(length: int) -> int:
    """M: tokens of a text that are masked at most, twice the share and a few; that more are drawn is rare."""
    return min(length, 4 + round(2 * WORD_SHARE * length))


def mask_patches(rows: int, patches: int, generator: np.random.Generator) -> np.ndarray:
    """[B, P] bool, the patches to take away."""
    return np.asarray(generator.random((rows, patches)) < PATCH_SHARE)


def word_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """[N, L] int64: which word of its text each token belongs to; `NO_WORD` for padding and special tokens."""
    encodings = tokenizer.encode_batch([clean(text) for text in texts])
    return np.array(
        [[NO_WORD if word is None else word for word in encoding.word_ids] for encoding in encodings], np.int64
    )
