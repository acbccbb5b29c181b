"""Colour labels as sellers write them, cleaned: what the labels of one product have in common says nothing.

"Black Shirt (ships within 30 days)" and "White Shirt" are "Black" and "White"; 藏青色T恤 and 白色T恤 are 藏青 and 白.
In this order: notes in brackets go, then the text common to the end of all labels, then the empty suffix 色 (colour).
No step takes the last word of a label. Cleaning is a function of the whole product, never of one label alone.
Training and serving share this file: the export copies it next to the Triton model that prepares requests, so it
imports the standard library only and runs on Python 3.10 and later.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_CHARACTERS = 1024
"""Of a label; what lies behind is not looked at. The model reads far less."""

COLOUR_SUFFIX = "色"

_BRACKETS = re.compile(
    r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|【[^【】]*】|「[^「」]*」|〔[^〔〕]*〕|<[^<>]*>|《[^《》]*》"
)
_BRACKET = re.compile(r"[()\[\]{}【】「」〔〕<>《》]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Words of scripts that write spaces are one token, Chinese characters one each, so that no common ending cuts a word.
_TOKEN = re.compile(r"[^\W\u2e80-\u9fff\uf900-\ufaff]+|\S")
_EDGE = " -_,.;:/|+·、，。&*#~"


def clean_labels(labels: Sequence[str]) -> list[str]:
    """Cleans the labels of one product.

    Args:
        labels: [m] free text, of any language. Repeated, empty and very long labels are fine.

    Returns:
        [m] cleaned labels, in Unicode form NFKC. One that is nothing but a note in brackets keeps the note's text; an
        empty one stays empty.
    """
    cleaned = [_without_notes(label) for label in labels]
    shared = _common_ending(list(dict.fromkeys(label for label in cleaned if label)))
    return [_without_suffix(_without_ending(label, shared)) for label in cleaned]


def _without_notes(label: str) -> str:
    text = _CONTROL.sub(" ", unicodedata.normalize("NFKC", label[:MAX_CHARACTERS]))
    bare = text
    while (shorter := _BRACKETS.sub(" ", bare)) != bare:  # from the inside out
        bare = shorter
    return _tidy(_BRACKET.sub(" ", bare)) or _tidy(_BRACKET.sub(" ", text))


def _tidy(text: str) -> str:
    return " ".join(text.split()).strip(_EDGE)


def _tokens(label: str) -> list[str]:
    return [token.casefold() for token in _TOKEN.findall(label)]


def _common_ending(labels: Sequence[str]) -> int:
    """How many tokens all labels share at their end, so that each keeps one with a letter or a digit."""
    if len(labels) < 2:
        return 0
    token_lists = [_tokens(label) for label in labels]
    shared = 0
    for column in zip(*(reversed(tokens) for tokens in token_lists), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    while shared and not all(any(map(str.isalnum, tokens[:-shared])) for tokens in token_lists):
        shared -= 1
    return shared


def _without_ending(label: str, tokens: int) -> str:
    if not tokens or not label:
        return label
    start = [match.start() for match in _TOKEN.finditer(label)][-tokens]
    return _tidy(label[:start])


def _without_suffix(label: str) -> str:
    shorter = _tidy(label.removesuffix(COLOUR_SUFFIX))
    return shorter or label
