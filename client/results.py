"""Records that come out: categories, colours, embeddings, found products.

Frozen dataclasses with plain Python values, no arrays and no protobuf, so that results can be logged, pickled,
compared and kept without holding the response message alive; `to_dict()` gives what json, pandas or a feature store
take.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import ShelfwiseError

if TYPE_CHECKING:
    import pyarrow

PATH_SEPARATOR = " > "


class Record:
    """A result."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, records in them likewise."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every record is a dataclass


@dataclass(frozen=True, slots=True)
class Category(Record):
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
class Categorization(Record):
    """The answer for one item.

    Attributes:
        categories: most probable first, as many as were asked for.
        neighbour_kl: KL divergence in nats from the label-neighbour distribution of the top category to the
            predicted one: small when the doubt is among related categories, large when a person should look.
    """

    categories: tuple[Category, ...]
    neighbour_kl: float


@dataclass(frozen=True, slots=True)
class Judgement(Categorization):
    """The answer for one item, and whether it can be filed without a person.

    Attributes:
        sure: whether the first category is as probable as the bundle asks of an answer that nobody looks at: those are
            right in the share of cases that its training was told (`--precision`, 99 %).
    """

    sure: bool


@dataclass(frozen=True, slots=True)
class ColourMatch(Record):
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
class Embedding(Record):
    """A place in the space that texts and images share; `numpy.asarray` takes it.

    Attributes:
        values: [D], of unit length: the similarity of two is their scalar product.
    """

    values: tuple[float, ...]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype or np.float32)


@dataclass(frozen=True, slots=True)
class FoundProduct(Record):
    """One product of a search.

    Attributes:
        product_id: its id; a product is found once, however many photos it has.
        score: similarity of its nearest photo to what was searched, a cosine.
        photo: which of its images that is, counted from 0.
        image_score, text_score: similarity to the image and to the text of the query; 0 where there is none.
        matched: groups of entities in which the product is as the query names it ("brand", "base_colour").
    """

    product_id: str
    score: float
    photo: int
    image_score: float
    text_score: float
    matched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchResult(Record):
    """What a search found, nearest first."""

    products: tuple[FoundProduct, ...]


@dataclass(frozen=True, slots=True)
class RankedProduct(FoundProduct):
    """One product of a search that was ranked again.

    Attributes:
        match: how probable it is that query, title and photo belong together; None where it was not asked.
    """

    match: float | None


@dataclass(frozen=True, slots=True)
class RankedSearch(SearchResult):
    """What a search found, the most probable match first, and behind them what was not ranked again.

    Attributes:
        seconds: that ranking again took, beyond the search itself.
    """

    products: tuple[RankedProduct, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TextImageMatch(Record):
    """Whether text and image belong together.

    Attributes:
        probability: between 0 and 1.
        text_cut: the title or the query is longer than the model reads: the answer is about its beginning.
    """

    probability: float
    text_cut: bool


@dataclass(frozen=True, slots=True)
class ServerMetadata(Record):
    """Who answers: the server's name and version, and the versions of the model that was asked about."""

    name: str
    version: str
    model_versions: tuple[str, ...]


def to_arrow(answers: Iterable[Record | tuple[Record, ...] | ShelfwiseError]) -> pyarrow.Table:
    """Answers of a stream as a table, a row each; `error` says what failed. Its `to_pandas()` gives a data frame.

    Raises:
        ImportError: pyarrow is not installed.
    """
    import pyarrow

    rows: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, ShelfwiseError):
            rows.append({"error": str(answer)})
        elif isinstance(answer, Record):
            rows.append(answer.to_dict())
        else:
            rows.append({"matches": [match.to_dict() for match in answer]})
    names = dict.fromkeys(name for row in rows for name in row) | {"error": None}
    return pyarrow.table({name: [row.get(name) for row in rows] for name in names})
