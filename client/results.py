"""Records that go in and come out: items asked about, categories answered.

Frozen dataclasses with plain Python values, no arrays and no protobuf, so that results can be logged, pickled,
compared and kept without holding the response message alive. Items are named tuples, so that a plain
`(image, title)` pair is one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .images import Image

PATH_SEPARATOR = " > "


class Item(NamedTuple):
    """One product to categorize; either field may be absent (None, empty bytes or blank text), not both."""

    image: Image | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Category:
    """One candidate category.

    Attributes:
        label: the full path as text, "Apparel > Topwear > Tshirts".
        path: the same path, top level first: ("Apparel", "Topwear", "Tshirts").
        id: the class number in the model that answered; it can mean another category after a new training.
        probability: between 0 and 1; over all categories of the model they sum to 1.
    """

    label: str
    path: tuple[str, ...]
    id: int
    probability: float


@dataclass(frozen=True, slots=True)
class Categorization:
    """The answer for one item.

    Attributes:
        categories: most probable first, as many as were asked for.
        neighbour_kl: KL divergence in nats from the label-neighbour distribution of the top category to the
            predicted one: small when the doubt is among related categories, large when a person should look.
    """

    categories: tuple[Category, ...]
    neighbour_kl: float


@dataclass(frozen=True, slots=True)
class ColourMatch:
    """The label of one photo.

    Attributes:
        label: the label, as it was given.
        index: its place among the labels.
        probability: of this label for this photo.
        probabilities: of all labels for this photo, in their order; they sum to 1.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who answers: the server's name and version, and the versions of the model that was asked about."""

    name: str
    version: str
    model_versions: tuple[str, ...]
