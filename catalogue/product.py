"""One product, and the rules that hold for every product wherever it came from.

A category is a path from the top, ("Apparel", "Topwear", "Tshirts"), written "Apparel > Topwear > Tshirts" where one
line of text is needed (Google's product taxonomy writes it so). A label has one spelling, whatever the encodings of
it that look alike (`normal_label`), and labels that could not be read back from such a line are refused, here, once,
so that label files, feeds and answers of the server never need escaping.
The split of a product follows from a hash of its key, never from its place in a file.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

ENTITY_GROUPS = ("brand", "base_colour", "season", "usage", "sub_category")
"""The kinds of entity that a product may name, in the order in which models and servers take them."""

PATH_SEPARATOR = " > "

# Spaces around ">" may be missing; arrows ("HDMI->DVI") and comparisons (">= 5 l", "laptops > >15 inch") are text.
_SEPARATOR = re.compile(r"(?<![-=<>])(?!(?<!\S)>\d)>+(?![=>])")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Soft hyphen, zero-width space, directional marks, word joiner, byte order mark; and joiners within Latin text.
_INVISIBLE = re.compile(
    r"[\u00ad\u200b\u200e\u200f\u2060\ufeff]"
    r"|(?<![\u0250-\U0010ffff])[\u200c\u200d]|[\u200c\u200d](?![\u0250-\U0010ffff])"
)
_SPACES = re.compile(r"[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")

TEST_SHARE = 0.10
VAL_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a catalogue.

    Attributes:
        id: unique within its feed, not empty.
        images: encoded image files (JPEG, PNG, WebP, …), the main one first; may be empty.
        title: free text; may be empty.
        category: labels from the top of the taxonomy down; () when unknown.
        entities: value by entity group, a subset of `ENTITY_GROUPS`; an absent entity is left out.
        split: which part of the catalogue the product belongs to.

    Raises:
        ValueError: the id is empty, a category label is not usable (see `check_label`), an entity group is unknown or
            its value empty, or the split is not one of `SPLITS`.
    """

    id: str
    images: tuple[bytes, ...]
    title: str
    category: tuple[str, ...]
    entities: Mapping[str, str]
    split: Split

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a product needs an id")
        _check_path(self.category)
        for group, value in self.entities.items():
            if group not in ENTITY_GROUPS:
                raise ValueError(f"unknown entity group {group!r}; known: {', '.join(ENTITY_GROUPS)}")
            if not value:
                raise ValueError(f"entity {group!r} is empty; leave an absent entity out")
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; known: {', '.join(SPLITS)}")


def split_of(key: str) -> Split:
    """The split that a key belongs to: 10 % test, 5 % val, the rest train.

    u = blake2b(key as UTF-8, 8 bytes, read big-endian) / 2**64 is uniform in [0, 1); u < 0.10 is test, u < 0.15 is
    val, else train. The key is the product's id, or the id of its group where the members of a group (the colour
    variants of one product) must not be told apart by the split.
    """
    u = hash_share(key)
    if u < TEST_SHARE:
        return "test"
    return "val" if u < TEST_SHARE + VAL_SHARE else "train"


def hash_share(key: str) -> float:
    """Where a key falls in [0, 1), uniformly and always in the same place."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


@lru_cache(maxsize=65536)
def normal_label(text: str) -> str:
    """The one spelling of a category label, of all those that look alike.

    HTML entities become their characters, Unicode is composed (NFC), what has no width is dropped, and white space of
    every kind but line breaks becomes single spaces, none at the ends. Case is kept.
    """
    while (normal := _normal(text)) != text:
        text = normal
    return text


def _normal(text: str) -> str:
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return _SPACES.sub(" ", unicodedata.normalize("NFC", _INVISIBLE.sub("", text))).strip()


def check_label(label: str) -> None:
    """Refuses a category label that could not be read back from a line "A > B > C".

    Raises:
        ValueError: the label is empty, is not written as `normal_label` writes it, contains a line break or the
            separator ">".
    """
    if not label:
        raise ValueError("empty category label")
    if label != label.strip():
        raise ValueError(f"category label {label!r} has white space around it")
    if label.splitlines() != [label]:
        raise ValueError(f"category label {label!r} contains a line break")
    if _SEPARATOR.search(label):
        raise ValueError(f"category label {label!r} contains the separator {PATH_SEPARATOR!r}")
    if label != normal_label(label):
        raise ValueError(f"category label {label!r} is to be written {normal_label(label)!r}")


@lru_cache(maxsize=65536)
def _check_path(path: tuple[str, ...]) -> None:
    for label in path:
        check_label(label)


def join_path(path: tuple[str, ...]) -> str:
    """("A", "B", "C") as "A > B > C".

    Raises:
        ValueError: a label is not usable, see `check_label`.
    """
    _check_path(path)
    return PATH_SEPARATOR.join(path)


@lru_cache(maxsize=65536)
def parse_path(text: str) -> tuple[str, ...]:
    """ "A > B > C" as ("A", "B", "C"), each label in its one spelling (`normal_label`); an empty text is ().

    Spaces around ">" may be missing. Arrows and comparisons within a label ("HDMI->DVI") separate nothing.

    Raises:
        ValueError: a label is not usable, see `check_label`.
    """
    text = normal_label(text)
    if not text:
        return ()
    path = tuple(label.strip() for label in _SEPARATOR.split(text))
    _check_path(path)
    return path
