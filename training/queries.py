"""Search queries made from what a feed says of its products, for feeds without a log of real ones.

People type a few words in any order, leave out what they do not care about, say navy for Navy Blue, shorten brands and
misspell. A query here names the kind of product, its colour, its brand or words of its title, most often two to four of
these, shuffled, with other wordings and now and then a fault of one letter. Queries are made anew in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalogue.brands import BrandVocabulary
from catalogue.colour_words import ENGLISH
from catalogue.store import Store, title_key

OTHER_WORDING = 0.3
MISSPELT = 0.15
SHORTEST_MISSPELT = 4
MOST_PHRASES = 4


@dataclass(frozen=True)
class Query:
    """A query and the words that it means, before other wordings and faults."""

    text: str
    words: frozenset[str]


class QueryMaker:
    """Makes queries for the products of a store.

    Args:
        store: says titles, categories, brands and colours.
    """

    def __init__(self, store: Store) -> None:
        brands = BrandVocabulary(store.titles)
        self._brand = [
            given or brands.brand_of(title) or ""
            for given, title in zip(store.entities["brand"], store.titles, strict=True)
        ]
        self._colour = store.entities["base_colour"]
        self._kind = [path[-1] if path else "" for path in store.categories]
        self._titles = store.titles
        self._words = [
            frozenset(title_key(" ".join([title, brand, colour, *path])).split())
            for title, brand, colour, path in zip(
                store.titles, self._brand, self._colour, store.categories, strict=True
            )
        ]

    def make(self, product: int, generator: np.random.Generator) -> Query:
        """A query that a product answers; empty where the feed says nothing of it."""
        brand, colour = self._brand[product], self._colour[product]
        named = [phrase for phrase in (self._kind[product], colour, brand) if phrase]
        taken = set(title_key(" ".join(named)).split())
        others = [word for word in self._titles[product].split() if word.lower() not in taken]
        phrases = [phrase for phrase in named if generator.random() < 0.6]
        phrases += [word for word in others if generator.random() < 1 / max(2, len(others))]
        if not phrases and (named or others):
            phrases = [(named + others)[generator.integers(len(named) + len(others))]]
        phrases = [phrases[place] for place in generator.permutation(len(phrases))[:MOST_PHRASES]]
        words = frozenset(title_key(" ".join(phrases)).split())
        typed = [self._wording(phrase, brand, colour, generator) for phrase in phrases]
        return Query(misspell(" ".join(typed).lower(), generator), words)

    def fits(self, query: Query, product: int) -> bool:
        """Whether all that a query means is said of a product: then the product answers it, whoever it was made for."""
        return query.words <= self._words[product]

    @staticmethod
    def _wording(phrase: str, brand: str, colour: str, generator: np.random.Generator) -> str:
        other: Sequence[str] = ()
        if phrase == colour:
            other = ENGLISH.get(colour, ())
        elif phrase == brand and " " in brand:
            other = (brand.split()[0], brand.replace(" ", ""))
        if other and generator.random() < OTHER_WORDING:
            return other[int(generator.integers(len(other)))]
        return phrase


def misspell(text: str, generator: np.random.Generator) -> str:
    """The text; with a chance of 15 % one letter of a longer word is left out, doubled or changes places."""
    words = text.split()
    long = [place for place, word in enumerate(words) if len(word) >= SHORTEST_MISSPELT]
    if not long or generator.random() >= MISSPELT:
        return text
    place = long[generator.integers(len(long))]
    word = words[place]
    letter = int(generator.integers(1, len(word) - 1))
    words[place] = (
        word[:letter] + word[letter + 1 :],
        word[:letter] + word[letter] + word[letter:],
        word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :],
    )[generator.integers(3)]
    return " ".join(words)
