"""The served ensembles, one description each: what a caller gives, the tensors, what comes back.

A new ensemble is a function here that returns its `Call`, a result in `results.py`, and its methods in `client.py`.
Items are named tuples, so that a plain tuple of the same fields is one, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from .call import Call, Inputs, Outputs, Row, int32, utf8
from .errors import InvalidInput
from .images import Image, encode_image
from .results import (
    PATH_SEPARATOR,
    Categorization,
    Category,
    ColourMatch,
    Embedding,
    FoundProduct,
    Judgement,
    SearchResult,
    TextImageMatch,
)

Values = Mapping[str, Sequence[Any]]
Filters = Mapping[str, str | Sequence[str]]
"""One value or several by attribute: products that have any of them, and so for every attribute."""
Fields = TypeVar("Fields", bound=NamedTuple)


class Item(NamedTuple):
    """One product to categorize; either field may be absent (None, empty bytes or blank text), not both."""

    image: Image | None = None
    title: str | None = None


class Photos(NamedTuple):
    """All photos of one product and its colour labels: at least one photo, and as many labels as photos."""

    images: Sequence[Image]
    labels: Sequence[str]


class Description(NamedTuple):
    """A text about a product and its entities in the order of the bundle; None or empty is an absent one."""

    description: str
    entities: Sequence[str | None] = ()


class Query(NamedTuple):
    """What to search for: a text, an image, a known product ("more like this"), entities, or several of them.

    `entities` stand in the order of the bundle, as in `Description`; what a text names ("diesel") is found by itself.
    """

    query: str | None = None
    image: Image | None = None
    like: str | None = None
    entities: Sequence[str | None] = ()


class TextAndImage(NamedTuple):
    """A product's title and image, and the query that they may fit; title or query may be absent, not both."""

    title: str | None
    image: Image
    query: str | None = None


class TextsAndImage(NamedTuple):
    """An image, the titles that may be its own, and the query that they may fit."""

    image: Image
    titles: Sequence[str]
    query: str | None = None


def categorize(k: int) -> Call[Categorization]:
    """Image and title of a product → its k most probable categories."""

    def encode(item: Any) -> Row:
        image, title = _fields(Item, item)
        return _either("image", image, "title", title)

    def decode(row: Row, outputs: Values) -> Categorization:
        labels = [label.decode() for label in _first(k, outputs["category"], "categories")]
        categories = zip(labels, outputs["category_id"], outputs["probability"], strict=False)
        return Categorization(
            tuple(Category(label, tuple(label.split(PATH_SEPARATOR)), *figures) for label, *figures in categories),
            outputs["neighbour_kl"][0],
        )

    _check_k(k)
    outputs: Outputs = {"category": ("k",), "category_id": ("k",), "probability": ("k",), "neighbour_kl": (1,)}
    return Call("categorize", {"image": 1, "title": 1}, outputs, encode, decode)


def judge(k: int) -> Call[Judgement]:
    """Image and title of a product → its k most probable categories, and whether the first can be filed unseen."""
    asked = categorize(k)

    def decode(row: Row, outputs: Values) -> Judgement:
        answer = asked.decode(row, outputs)
        return Judgement(answer.categories, answer.neighbour_kl, outputs["probability"][0] >= outputs["sure_from"][0])

    return Call(asked.name, asked.inputs, {**asked.outputs, "sure_from": (1,)}, asked.encode, decode)


def match_colours(one_to_one: bool) -> Call[tuple[ColourMatch, ...]]:
    """Photos and colour labels of a product → the label of every photo."""

    def decode(row: Row, outputs: Values) -> tuple[ColourMatch, ...]:
        labels = [label.decode() for label in row[1]]
        matches = []
        for photo, assigned in enumerate(outputs["assignment"]):
            row_probability = tuple(outputs["probability"][photo * len(labels) : (photo + 1) * len(labels)])
            chosen = assigned if one_to_one else row_probability.index(max(row_probability))
            matches.append(ColourMatch(labels[chosen], chosen, row_probability[chosen], row_probability))
        return tuple(matches)

    outputs = {"probability": ("n", "m"), "assignment": ("n",)}
    return Call("match_colours", {"images": "n", "labels": "m"}, outputs, _encode_photos, decode)


def embed_image() -> Call[Embedding]:
    """An image → its place in the space that texts share."""

    def encode(image: Any) -> Row:
        return ([_image(image, "image")],)

    return Call("embed_image", {"image": 1}, {"image_embeds": ("D",)}, encode, _decode_embedding("image_embeds"))


def embed_text() -> Call[Embedding]:
    """A description and its entities → their place in the space that images share."""

    def encode(item: Any) -> Row:
        description, entities = _fields(Description, item)
        return [utf8(description, "description")], _entities(entities)

    inputs: Inputs = {"description": 1, "entities": "E"}
    return Call("embed_text", inputs, {"text_embeds": ("D",)}, encode, _decode_embedding("text_embeds"))


def search(k: int, filters: Filters | None = None) -> Call[SearchResult]:
    """A text, an image, a product, entities → the k products nearest to them, among those that filters keep."""
    names = ("product_id", "score", "photo", "image_score", "text_score", "matched_entities")
    wanted = [utf8(f"{name}={value}", "filter") for name, value in _filters(filters or {})] or [b""]

    def encode(item: Any) -> Row:
        query, image, like, entities = _fields(Query, item)
        named = _entities(entities) or [b""]
        texts = utf8(query, "query"), utf8(like, "like")
        encoded = b"" if image is None else encode_image(image)
        if not (encoded or any(text.strip() for text in (*texts, *named))):
            raise InvalidInput("query, image, like and entities are all empty: at least one of them is needed")
        return [texts[0]], [encoded], [texts[1]], named, wanted, [int32(k)]

    def decode(row: Row, outputs: Values) -> SearchResult:
        columns = (outputs[name] for name in names)
        return SearchResult(
            tuple(
                FoundProduct(
                    number.decode(), score, photo, image, text, tuple(filter(None, matched.decode().split(",")))
                )
                for number, score, photo, image, text, matched in zip(*columns, strict=True)
                if number
            )
        )

    _check_k(k)
    inputs: Inputs = {"query": 1, "image": 1, "like": 1, "entities": "E", "filters": "F", "k": 1}
    return Call("search", inputs, dict.fromkeys(names, ("hits",)), encode, decode, frozenset({"k"}))


def match_text_image() -> Call[TextImageMatch]:
    """A title, an image and perhaps a query → how probable it is that they belong together."""

    def encode(item: Any) -> Row:
        title, image, query = _fields(TextAndImage, item)
        return asked.encode((image, [title or ""], query))

    def decode(row: Row, outputs: Values) -> TextImageMatch:
        return asked.decode(row, outputs)[0]

    asked = match_texts()
    return Call(asked.name, {**asked.inputs, "title": 1}, asked.outputs, encode, decode)


def match_texts() -> Call[tuple[TextImageMatch, ...]]:
    """An image, titles and perhaps a query → how probable it is for each title that all belong together."""

    def encode(item: Any) -> Row:
        image, titles, query = _fields(TextsAndImage, item)
        if isinstance(titles, (str, bytes)) or not isinstance(titles, Sequence) or not titles:
            raise InvalidInput(f"titles must be a sequence of at least one text, not {titles!r:.60}")
        name = "title" if len(titles) == 1 else "title {}"
        texts = [utf8(title, name.format(place)) for place, title in enumerate(titles)]
        asked = utf8(query, "query")
        for place, text in enumerate(texts):
            if not text.strip() and not asked.strip():
                raise InvalidInput(f"{name.format(place)} and query are both empty: at least one of them is needed")
        return [asked], texts, [_image(image, "image")]

    def decode(row: Row, outputs: Values) -> tuple[TextImageMatch, ...]:
        return tuple(map(TextImageMatch, outputs["probability"], outputs["text_cut"]))

    inputs: Inputs = {"query": 1, "title": "T", "image": 1}
    return Call("match_text_image", inputs, {"probability": ("T",), "text_cut": ("T",)}, encode, decode)


def _encode_photos(item: Any) -> Row:
    images, labels = _fields(Photos, item)
    for name, given in (("images", images), ("labels", labels)):
        if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
            raise InvalidInput(f"{name} must be a sequence, not one {type(given).__name__}: {given!r:.60}")
    if not len(images) or len(images) > len(labels):
        raise InvalidInput(
            f"{len(images)} images and {len(labels)} labels: give at least one image and as many labels as images"
        )
    photos = []
    for place, image in enumerate(images):
        try:
            photos.append(encode_image(image))
        except InvalidInput as error:
            raise InvalidInput(f"image {place}: {error}") from error
    return photos, [utf8(label, f"label {place}") for place, label in enumerate(labels)]


def _entities(entities: Sequence[str | None]) -> list[bytes]:
    if isinstance(entities, str):
        raise InvalidInput(f"entities must be a sequence of texts, not one text: {entities!r:.60}")
    return [utf8(entity, f"entity {place}") for place, entity in enumerate(entities)]


def _filters(filters: Filters) -> list[tuple[str, str]]:
    """Pairs of attribute and value, one a value."""
    return [
        (name, value) for name, values in filters.items() for value in ([values] if isinstance(values, str) else values)
    ]


def _decode_embedding(output: str) -> Any:
    return lambda row, outputs: Embedding(tuple(outputs[output]))


def _fields(kind: type[Fields], item: Any) -> Fields:
    """The item as its named tuple; other iterables, a text for example, are no items."""
    try:
        if isinstance(item, (tuple, list)):
            return kind(*item)
    except TypeError:
        pass
    raise InvalidInput(f"an item must be ({', '.join(kind._fields)}), not {item!r:.80}")


def _either(image_name: str, image: Image | None, text_name: str, text: str | None) -> Row:
    encoded = b"" if image is None else encode_image(image)
    utf_8 = utf8(text, text_name)
    if not encoded and not utf_8.strip():
        raise InvalidInput(f"{image_name} and {text_name} are both empty: at least one of them is needed")
    return [encoded], [utf_8]


def _image(image: Image | None, name: str) -> bytes:
    encoded = b"" if image is None else encode_image(image)
    if not encoded:
        raise InvalidInput(f"{name} is empty")
    return encoded


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInput(f"k must be a whole number, at least 1, not {k!r}")


def _first(k: int, values: Sequence[Any], what: str) -> Sequence[Any]:
    if k > len(values):
        raise InvalidInput(f"k is {k}, but this server returns {len(values)} {what}")
    return values[:k]
