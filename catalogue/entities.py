"""Entities by number, and found in text: "diesel" is a brand, "navy" is Navy Blue.

A vocabulary lists the values of each entity group that a feed names often enough; number 0 stands for an absent or
unknown value, in training and in the server alike. A text is parsed into the entities that it names and what is left
when brand and colour are taken out, the description. Titles and queries go through the same parser, so an encoder is
asked in the words that it was trained on.
Only the standard library and colour words: an export puts a copy of both beside the models that it serves.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .colour_words import CHINESE, ENGLISH, colour_name

ABSENT = 0
CUT_GROUPS = ("brand", "base_colour")
"""Groups whose words are no part of a description: names with a private meaning, which have an encoder of their own."""

WORD = re.compile(r"[^\s/,;:!?()\"\u201c\u201d-]+")
CONNECTIVES = frozenset({"&", "and", "with", "in", "by", "+"})

# Feeds write these where they have nothing to say.
NOT_A_VALUE = frozenset({"", "na", "n/a", "nan", "none", "null"})


class EntityError(ValueError):
    """Entities that cannot be numbered; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A text and what it names.

    Attributes:
        entities: value by group, of those that the text names.
        description: the text without the words of its brand and its colour.
    """

    entities: Mapping[str, str]
    description: str


class EntityVocabulary:
    """The values of each entity group, in a fixed order; a value's number is its place, counted from 1.

    Args:
        values: by group, in the order in which models and servers take groups. Case makes no difference between two
            values; the first spelling is the value's name.
    """

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self.values = {group: tuple(names) for group, names in values.items()}
        self._numbers = {
            group: {_key(name): number for number, name in reversed(list(enumerate(names, 1)))}
            for group, names in self.values.items()
        }
        self._phrases = self._named_phrases()
        self._longest = max(map(len, self._phrases), default=0)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Iterable[str]], min_count: int) -> EntityVocabulary:
        """The vocabulary of a feed.

        Args:
            columns: by group the value of every training product, "" where it has none.
            min_count: how many products must name a value; a rarer one is unknown, too few examples to learn from. A
                group without a value is left out.
        """
        vocabulary: dict[str, list[str]] = {}
        for group, column in columns.items():
            spellings: dict[str, Counter[str]] = {}
            for value in column:
                if _key(value) not in NOT_A_VALUE:
                    spellings.setdefault(_key(value), Counter())[value] += 1
            counts = {key: found.total() for key, found in spellings.items() if found.total() >= min_count}
            keys = sorted(counts, key=lambda key: (-counts[key], key))
            names = [min(spellings[key].items(), key=lambda found: (-found[1], found[0]))[0] for key in keys]
            if names:
                vocabulary[group] = names
        return cls(vocabulary)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order in which entities are given."""
        return tuple(self.values)

    def number(self, group: str, value: str) -> int:
        """The number of a value, 0 when it is absent or unknown."""
        return self._numbers[group].get(_key(value), ABSENT)

    def numbers(self, entities: Mapping[str, str]) -> list[int]:
        """[E] the numbers of a product's entities, in the order of the groups.

        Raises:
            EntityError: a group is not one of the vocabulary's.
        """
        unknown = entities.keys() - self.values.keys()
        if unknown:
            raise EntityError(f"unknown entity group {min(unknown)!r}; known: {', '.join(self.groups)}")
        return [self.number(group, entities.get(group, "")) for group in self.groups]

    def named(self, values: Sequence[str]) -> dict[str, str]:
        """Entities given as a list in the order of the groups, "" for an absent one, by group.

        Raises:
            EntityError: the list has another length than there are groups.
        """
        if len(values) != len(self.values):
            raise EntityError(
                f"{len(values)} entities given, {len(self.values)} expected: {', '.join(self.groups)} "
                "(empty where there is none)"
            )
        return {group: value for group, value in zip(self.groups, values, strict=True) if _key(value)}

    def parse(self, text: str) -> ParsedText:
        """Finds the entities that a text names: whole words in any case, the longest first, one value a group.

        Of two colours the first is the entity; the other stays in the description ("Black & White Shoe").
        """
        words = [(match.span(), _key(match.group())) for match in WORD.finditer(text)]
        found: dict[str, str] = {}
        cut: list[tuple[int, int]] = []
        start = 0
        while start < len(words):
            for stop in range(min(len(words), start + self._longest), start, -1):
                phrase = tuple(word for _, word in words[start:stop])
                group, value = self._phrases.get(phrase, ("", ""))
                if group and group not in found:
                    found[group] = value
                    if group in CUT_GROUPS:
                        cut.append((words[start][0][0], words[stop - 1][0][1]))
                    start = stop - 1
                    break
            start += 1
        return ParsedText(
            {group: found[group] for group in self.groups if group in found}, _without(text, cut) if cut else text
        )

    def save(self, path: Path) -> None:
        """Writes the vocabulary as JSON."""
        path.write_text(json.dumps(self.values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> EntityVocabulary:
        """Reads a vocabulary.

        Raises:
            ValueError: the file holds something else; the message says so.
        """
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in values.values()
        ):
            raise ValueError(f"{path.name} holds no lists of values by entity group")
        return cls(values)

    def _named_phrases(self) -> dict[tuple[str, ...], tuple[str, str]]:
        """Group and value by the words that name it; of two groups with one word the first has it."""
        phrases: dict[tuple[str, ...], tuple[str, str]] = {}
        for group, names in self.values.items():
            plain = [(name, name) for name in names]
            other = [(wording, name) for name in names for wording in _wordings(name)] if group == "base_colour" else []
            for wording, name in plain + other:  # a value's own name before other words for another value
                words = tuple(_key(word) for word in WORD.findall(wording))
                if words:
                    phrases.setdefault(words, (group, name))
        return phrases


def _wordings(colour: str) -> tuple[str, ...]:
    name = colour_name(colour)
    return (*ENGLISH.get(name, ()), *CHINESE.get(name, ()))


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).strip(".'’")


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without some spans, and without the connectives that then stand at an end ("& White Shoe")."""
    kept, start = [], 0
    for begin, end in spans:
        kept.append(text[start:begin])
        start = end
    words = " ".join([*kept, text[start:]]).split()
    while words and words[0].casefold() in CONNECTIVES | {"-"}:
        words.pop(0)
    while words and words[-1].casefold() in CONNECTIVES | {"-"}:
        words.pop()
    return " ".join(words)
