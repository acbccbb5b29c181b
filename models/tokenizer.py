"""Byte-level BPE for titles (Sennrich et al., 2016), characters for colour labels, or what a checkpoint folder brings.

One `tokenizer.json` of the `tokenizers` library is the whole tokenizer: training and the served `prepare_…` models read
the same file.  Both fall back to bytes: no text has an unknown character.  Every text starts with [CLS], so that even
an empty one has a token to attend to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]")
PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")  # as BERT, T5, CLIP and SigLIP call it
CONTROL_TO_SPACE = str.maketrans({chr(code): " " for code in (*range(0x20), *range(0x7F, 0xA0))})


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000) -> Tokenizer:
    """Trains a BPE tokenizer; texts are lower-cased and brought to Unicode form NFKC.

    Args:
        texts: the titles of the training split.
        vocab_size: entries at most, special tokens and the 256 bytes included.

    Raises:
        ValueError: `vocab_size` cannot hold the special tokens and the byte alphabet.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size={vocab_size} is less than {len(alphabet) + len(SPECIAL_TOKENS)}, the byte alphabet"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    return tokenizer


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of single characters, for texts of a few words such as colour labels, in any script.

    Texts are lower-cased and brought to Unicode form NFKC. A character that is not in the vocabulary falls to its UTF-8
    bytes, so that none is unknown.

    Args:
        texts: whose characters make the vocabulary.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)})
    entries = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="[UNK]", byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle or of a Hugging Face checkpoint folder, with its padding.

    Raises:
        FileNotFoundError: `folder` has no tokenizer.json.
        ValueError: the file holds no tokenizer, or one without a token to pad with.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception for a file it cannot parse
        raise ValueError(f"{path} holds no tokenizer: {error}") from error
    named = None
    if (folder / "tokenizer_config.json").is_file():
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
    pad_id, pad_token = padding_token(tokenizer, named["content"] if isinstance(named, dict) else named)
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token)
    return tokenizer


def padding_token(tokenizer: Tokenizer, named: str | None = None) -> tuple[int, str]:
    """Number and name of the token that a tokenizer pads with.

    Args:
        named: by the files beside the tokenizer; else it is the one that the tokenizer is set to, or a usual one.

    Raises:
        ValueError: the tokenizer has none.
    """
    set_to = tokenizer.padding["pad_token"] if tokenizer.padding else None
    for token in (named, set_to, *PADDING):
        if token is not None and (number := tokenizer.token_to_id(token)) is not None:
            return number, token
    raise ValueError(f"the tokenizer has no token to pad with, none of {', '.join(PADDING)}")


def fit_max_length(tokenizer: Tokenizer, texts: Sequence[str], *, quantile: float = 0.995, limit: int = 64) -> int:
    """The shortest multiple of 8 that holds `quantile` of the texts whole, at most `limit`: padding costs."""
    padding = tokenizer.padding
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    if padding:
        tokenizer.enable_padding(**padding)
    longest = float(np.quantile(lengths, quantile)) if lengths else 1.0
    return min(limit, 8 * int(np.ceil(longest / 8)))


def set_length(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """Makes every encoding exactly `max_length` tokens: longer texts are cut, shorter ones padded and masked."""
    pad_id, pad_token = padding_token(tokenizer)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=pad_id, pad_token=pad_token)
    return tokenizer


def clean(text: str) -> str:
    """A text as the served models take it: control characters are spaces, and the ends are stripped."""
    return text.translate(CONTROL_TO_SPACE).strip()


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask of texts, [N, L] int64 each; `set_length` must have been called."""
    encodings = tokenizer.encode_batch([clean(text) for text in texts])
    input_ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    attention_mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return input_ids, attention_mask


def encode_to_longest(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `encode`, with as many tokens as the longest text has: networks do not compute on padding for nothing."""
    input_ids, attention_mask = encode(tokenizer, texts)
    longest = int(attention_mask.sum(1).max())
    return input_ids[:, :longest], attention_mask[:, :longest]
