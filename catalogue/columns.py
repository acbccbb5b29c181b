"""Which column of a feed holds what: the own schema, and presets for public data sets and exports of shops.

A mapping is plain data; `feed.py` reads by it. Conventions of public feeds that need more than a column name are named
here as fields: a class that is known by its last label alone (`file_by_leaf`, fashion), class names in a second table
beside the feed (`lookup`, grocery), a second column of categories (`category_else`) and several rows a product
(`rows_of_product`, Shopify).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from catalogue.product import ENTITY_GROUPS


@dataclass(frozen=True)
class Lookup:
    """A small Parquet table beside the feed whose columns are joined to every row.

    Attributes:
        file: name of the table, in the folder of the feed.
        key: column, of the feed and of the table, that joins them.
        columns: columns of the table that a row gains.
    """

    file: str
    key: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ColumnMapping:
    """Where a feed keeps the fields of a product.

    Attributes:
        id: column of the product's id (text or whole numbers).
        image: column of the images, None if the feed has none. A cell is an encoded image, a list of them, a struct
            with the fields `bytes` and `path`, or text: paths relative to the feed's folder, separated by "|".
        title: column of the title, None if the feed has none.
        category: one column a level from the top down, or a single column with a path "A > B > C" (or a list of
            labels); () if the feed has none.
        category_else: read likewise where `category` is empty.
        entities: column by entity group of `ENTITY_GROUPS`.
        split: column of the split; None, or an empty cell, means `split_of(id)`.
        optional: columns that the file may lack without that being an error.
        file_by_leaf: the last label alone is the class; the rows that give it another path than the one it has most
            often in the feed (the alphabetically first of equals) are filed under that one.
        brand_from_title: the entity "brand" is read off the title, see `catalogue/brands.py`.
        lookup: a table to join first.
        rows_of_product: rows of the same id that follow one another are one product.

    Raises:
        ValueError: an entity group is unknown.
    """

    id: str = "id"
    image: str | None = "images"
    title: str | None = "title"
    category: tuple[str, ...] = ("category",)
    category_else: tuple[str, ...] = ()
    entities: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    optional: frozenset[str] = frozenset()
    file_by_leaf: bool = False
    brand_from_title: bool = False
    lookup: Lookup | None = None
    rows_of_product: bool = False

    def __post_init__(self) -> None:
        for group in self.entities:
            if group not in ENTITY_GROUPS:
                raise ValueError(f"unknown entity group {group!r}; known: {', '.join(ENTITY_GROUPS)}")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Every mapped column but the images, each once."""
        named = [self.id, self.title, *self.category, *self.category_else, *self.entities.values(), self.split]
        return tuple(dict.fromkeys(column for column in named if column is not None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every mapped column, each once."""
        image = () if self.image is None else (self.image,)
        return tuple(dict.fromkeys((*self.text_columns, *image)))

    def spelled_as(self, columns: Collection[str]) -> ColumnMapping:
        """This mapping with the names that a file gives its columns, in any case, with spaces for underscores.

        Google's exports head a column "image_link", "image link" or "g:image_link". Where no name fits, or several do
        and none to the letter, the column stays as it is.
        """
        fitting: dict[str, list[str]] = {}
        for column in columns:
            fitting.setdefault(_folded(column), []).append(column)

        def spelled(name: str) -> str:
            found = fitting.get(_folded(name), [])
            return found[0] if name not in columns and len(found) == 1 else name

        return replace(
            self,
            id=spelled(self.id),
            image=self.image and spelled(self.image),
            title=self.title and spelled(self.title),
            category=tuple(map(spelled, self.category)),
            category_else=tuple(map(spelled, self.category_else)),
            entities={group: spelled(column) for group, column in self.entities.items()},
            split=self.split and spelled(self.split),
            optional=frozenset(map(spelled, self.optional)),
        )

    def question(self) -> ColumnMapping:
        """This mapping with id, images and title alone: what a model is asked about, not what it is asked for."""
        return replace(
            self,
            category=(),
            category_else=(),
            entities={},
            split=None,
            file_by_leaf=False,
            brand_from_title=False,
            lookup=None,
        )

    def overridden(self, overrides: Mapping[str, str | Sequence[str] | None]) -> ColumnMapping:
        """This mapping with some columns named otherwise.

        Args:
            overrides: column by field (id, image, title, category, split) or entity group. None leaves the field as
                it is; "" says that the feed has no such column; category takes one column or one a level. Columns
                named here must exist in the feed.

        Raises:
            ValueError: a key is neither a field nor an entity group, or id is "".
        """
        mapping = self
        for name, given in overrides.items():
            if given is None:
                continue
            columns = tuple(column for column in ([given] if isinstance(given, str) else given) if column)
            if name == "category":
                mapping = replace(mapping, category=columns, category_else=(), file_by_leaf=False)
            elif name in ENTITY_GROUPS:
                entities = {group: column for group, column in mapping.entities.items() if group != name}
                entities.update((name, column) for column in columns)
                from_title = mapping.brand_from_title and name != "brand"
                mapping = replace(mapping, entities=entities, brand_from_title=from_title)
            elif name in ("id", "image", "title", "split"):
                if len(columns) > 1 or (name == "id" and not columns):
                    raise ValueError(f"{name} takes one column, not {given!r}")
                column = columns[0] if columns else None
                mapping = replace(mapping, **{name: column})  # type: ignore[arg-type]
            else:
                known = ", ".join(("id", "image", "title", "category", "split", *ENTITY_GROUPS))
                raise ValueError(f"no column mapping is called {name!r}; known: {known}")
            mapping = replace(mapping, optional=mapping.optional - set(columns))
        return mapping


def _folded(column: str) -> str:
    return column.lower().replace(" ", "_").removeprefix("g:")


OWN_SCHEMA = ColumnMapping(
    id="id",
    image="images",
    title="title",
    category=("category",),
    entities={group: group for group in ENTITY_GROUPS},
    split="split",
    optional=frozenset(ENTITY_GROUPS) | {"split"},
)

FASHION = ColumnMapping(
    id="id",
    image="image",
    title="title",
    category=("master_category", "sub_category", "article_type"),
    entities={group: group for group in ("base_colour", "season", "usage", "sub_category")},
    file_by_leaf=True,
    brand_from_title=True,
)

GROCERY = ColumnMapping(
    id="path",
    image="image",
    title=None,
    category=("coarse_name", "name"),
    split="split",
    lookup=Lookup(file="grocery-classes.parquet", key="fine", columns=("coarse_name", "name")),
)

GOOGLE_MERCHANT = ColumnMapping(
    id="id",
    image="image_link",
    title="title",
    category=("google_product_category",),
    category_else=("product_type",),
    entities={"brand": "brand", "base_colour": "color"},
    optional=frozenset({"google_product_category", "product_type", "brand", "color"}),
)

SHOPIFY = ColumnMapping(
    id="Handle",
    image="Image Src",
    title="Title",
    category=("Product Category",),
    category_else=("Type",),
    entities={"brand": "Vendor"},
    optional=frozenset({"Product Category", "Type", "Vendor"}),
    rows_of_product=True,
)

PRESETS: Mapping[str, ColumnMapping] = {
    "shelfwise": OWN_SCHEMA,
    "fashion": FASHION,
    "grocery": GROCERY,
    "google-merchant": GOOGLE_MERCHANT,
    "shopify": SHOPIFY,
}
"""Mappings by name: the own schema (what `write_feed` writes), two public data sets, two exports of shops.

fashion, Fashion Product Images: the article type is the class (142 of them), filed under its most frequent master and
sub category; the brand is the start of the title; `split_of(id)`.
grocery, Grocery Store Dataset: coarse name > fine name, joined from the table of classes beside the feed; its own
split; no titles.
google-merchant, the product feed of Google Merchant Center: Google's category, else the shop's own product type. Where
the former is a bare number, its classes are called by numbers: map category to product_type instead.
shopify, the product export: a product is the row with its title and those of its other variants and photos below it.
Photos of both are URLs, see `catalogue.image_files`.
"""
