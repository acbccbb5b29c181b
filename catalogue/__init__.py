"""The product catalogue: where products come from, before any model sees them.

`open_feed` streams the products of a Parquet or CSV feed, `generate_sample` draws a catalogue where there is none,
`Taxonomy` knows the category tree, `decode_image` turns an encoded image into pixels exactly as the server does.
Imports no torch and nothing else of the project.
"""

from catalogue.columns import PRESETS, ColumnMapping
from catalogue.feed import Feed, FeedError, FeedSummary, open_feed, write_feed
from catalogue.images import ImageError, decode_image
from catalogue.product import ENTITY_GROUPS, PATH_SEPARATOR, Product, Split, split_of
from catalogue.sample import generate_sample
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
    "generate_sample",
    "open_feed",
    "split_of",
    "write_feed",
]
