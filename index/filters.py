"""Filters over attributes: which products a search may answer with, and how many there are.

A filter names values by attribute: any of the values of one, and all of the attributes. Values match in any case; a
value of `category` also matches what lies below it ("Apparel" keeps "Apparel > Topwear > Shirts"). What is kept is
worked out once for each filter, since shoppers ask for the same brands and colours again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .snapshot import Snapshot, SnapshotError

CATEGORY = "category"
PATH_SEPARATOR = " > "

Filter = Mapping[str, Sequence[str]]
"""Values by attribute."""


def kept_products(snapshot: Snapshot, wanted: Filter) -> np.ndarray:
    """[P] bool, the products that a filter lets through.

    Raises:
        SnapshotError: the index has no such attribute; names those that it has.
    """
    products = np.ones(len(snapshot), bool)
    columns = snapshot.manifest.columns
    for attribute, values in wanted.items():
        if attribute not in columns:
            raise SnapshotError(f"the index has no attribute {attribute!r} to filter by; it has {', '.join(columns)}")
        names = columns[attribute]
        matching = np.array([_matches(attribute, name, values) for name in names] + [False])  # the last: -1, none
        products &= matching[snapshot.attributes[:, list(columns).index(attribute)]]
    return products


def _matches(attribute: str, name: str, values: Sequence[str]) -> bool:
    found = name.casefold()
    wanted = [value.casefold().strip() for value in values]
    return found in wanted or (
        attribute == CATEGORY and any(found.startswith(value + PATH_SEPARATOR) for value in wanted)
    )
