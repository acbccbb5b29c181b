"""The product catalogue: where products come from, before any model sees them.

`Taxonomy` knows the category tree, `decode_image` turns an encoded image into pixels exactly as the server does.
Imports no torch and nothing else of the project.
"""

from catalogue.columns import PRESETS, ColumnMapping
from catalogue.feed import Feed, FeedError, FeedSummary, open_feed, write_feed
from catalogue.images import ImageError, decode_image
from catalogue.product import ENTITY_GROUPS, PATH_SEPARATOR, Product, Split, split_of
from catalogue.taxonomy import Taxonomy

__all__ = [
    "ENTITY_GROUPS",
    "PATH_SEPARATOR",
    "PRESETS",
    "ColumnMapping",
    "Feed",
    "FeedError",
    "FeedSummary",
    "ImageError",
    "Product",
    "Split",
    "Taxonomy",
    "decode_image",
    "open_feed",
    "split_of",
    "write_feed",
]
