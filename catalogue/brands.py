"""Brands read off the start of titles, for feeds that have no column of brands.

Titles of fashion shops begin with the brand, then say for whom: "United Colors of Benetton Women Pink Sweater".
The words before the first word of gender are therefore a brand; those seen often enough make a vocabulary, and the
vocabulary then finds the brand in the titles that name nobody ("Lucera Silver Ring") and cuts off what other sellers
put behind it ("Lino Perros Maroon Women Bag").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

GENDER = re.compile(r"\b(?:men|women|man|woman|boys?|girls?|kids?|unisex)\b", re.IGNORECASE)
SEEN_OFTEN = 5


class BrandVocabulary:
    """The brands of a feed, by the titles of the feed.

    A brand is read off a title in this order:
    1. the longest start of the title, in whole words and ignoring case, that stands before a word of gender in at
       least `SEEN_OFTEN` titles of the feed;
    2. the words before the first word of gender;
    3. none.
    Spellings that differ only in case are one brand ("FILA", "Fila"), written in the most frequent way.
    """

    def __init__(self, titles: Iterable[str]) -> None:
        spellings: dict[str, Counter[str]] = {}
        for title in titles:
            brand = _before_gender(title)
            if brand:
                spellings.setdefault(brand.casefold(), Counter())[brand] += 1
        self._spelling = {key: min(seen, key=lambda name: (-seen[name], name)) for key, seen in spellings.items()}
        self._frequent = {key for key, seen in spellings.items() if seen.total() >= SEEN_OFTEN}
        self._longest = max((len(key.split(" ")) for key in self._frequent), default=0)

    def brand_of(self, title: str) -> str | None:
        """The brand at the start of `title`, None if none is recognised."""
        words = title.split()
        for length in range(min(self._longest, len(words)), 0, -1):
            key = " ".join(words[:length]).casefold()
            if key in self._frequent:
                return self._spelling[key]
        brand = _before_gender(title)
        return self._spelling.get(brand.casefold(), brand) if brand else None


def _before_gender(title: str) -> str:
    gender = GENDER.search(title)
    return " ".join(title[: gender.start()].split()) if gender else ""
