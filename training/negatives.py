"""Photos that do not belong to a text, and are hard to tell: of other products of the same category.

Notable: catalogues repeat themselves. Products that share a photo, pixel for pixel, or a title are kin, and kin of kin
are; a negative is never of the product itself nor of its kin, or the model would be punished for being right.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalogue.store import Store, title_key

from .examples import Examples

NONE = -1
TRIES = 8


class SameCategoryNegatives:
    """Draws, for examples of a set, other examples of the set.

    Args:
        examples: where they come from.
        rows: the set: indices of examples that have a photo and a title.

    Attributes:
        kin: [P] of every product, from `kin_of_products`.
    """

    def __init__(self, examples: Examples, rows: np.ndarray) -> None:
        products = examples.product[rows]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(examples.store.categories))}
        category = np.array([numbers[examples.store.categories[product]] for product in products], np.int64)
        order = np.argsort(category, kind="stable")
        self.kin = kin_of_products(examples.store)
        self._rows, self._kin = rows[order], self.kin[products[order]]
        self._place = np.full(len(examples), NONE)
        self._place[self._rows] = np.arange(len(rows))
        sorted_category = category[order]
        self._first = np.searchsorted(sorted_category, sorted_category, "left")
        self._behind = np.searchsorted(sorted_category, sorted_category, "right")

    def draw(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A negative of each of some rows of the set, [B]; `NONE` where its category has no product but kin."""
        places = self._place[rows]
        first, behind = self._first[places], self._behind[places]
        tries = first[:, None] + (generator.random((len(rows), TRIES)) * (behind - first)[:, None]).astype(np.int64)
        fits = self._kin[tries] != self._kin[places][:, None]
        chosen = self._rows[np.take_along_axis(tries, fits.argmax(1)[:, None], 1)[:, 0]]
        for row in np.flatnonzero(~fits.any(1)):  # most of the category is kin: look at all of it
            group = slice(first[row], behind[row])
            others = self._rows[group][self._kin[group] != self._kin[places[row]]]
            chosen[row] = generator.choice(others) if len(others) else NONE
        return chosen


def kin_of_products(store: Store) -> np.ndarray:
    """[P] int64: equal for products that share a photo or a title, directly or through others."""
    count = len(store)
    usable = np.flatnonzero(store.readable)
    _, photo = np.unique(store.photo_keys[usable], return_inverse=True)
    photos = int(photo.max(initial=-1)) + 1
    titles = {key: number for number, key in enumerate(dict.fromkeys(map(title_key, store.titles)))}
    titled = np.array([row for row, title in enumerate(store.titles) if title_key(title)], np.int64)
    title = np.array([titles[title_key(store.titles[row])] for row in titled], np.int64)
    # A graph of products, photos and titles: what a product has is joined to it.
    left = np.concatenate([store.photo_product[usable], titled])
    right = count + np.concatenate([photo, photos + title])
    size = count + photos + len(titles)
    graph = coo_array((np.ones(len(left), bool), (left, right)), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:count], np.int64)
