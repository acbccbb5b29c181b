"""A generated set of products in several colours, labelled in Chinese or in English: drawn shapes in known colours.

Every product is one design photographed in two to eight colours, each with its own view, background and light, written
as a feed in the own schema: a row a colour, titles that differ in the colour word alone, which is what
`colour_groups.py` looks for. Half of the products are Chinese: 浪行藏青色连帽衫, base colour 藏青色.
The idea of drawing products to teach colours is that of the published colour matcher; everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from catalogue.colour_words import CHINESE
from catalogue.feed import FeedSummary, write_feed
from catalogue.pen import Colour
from catalogue.product import Product
from catalogue.sample import ACCENTS, COLOURS, TAXONOMY, Camera, shifted

PALETTE: dict[str, Colour] = {
    **COLOURS,
    "Turquoise Blue": (70, 196, 206),
    "Lavender": (194, 174, 222),
    "Magenta": (204, 36, 122),
}

CHINESE_NOUNS = {
    "T-Shirts": "短袖T恤",
    "Shirts": "衬衫",
    "Sweaters": "毛衣",
    "Jackets": "夹克外套",
    "Trousers": "长裤",
    "Shorts": "短裤",
    "Skirts": "半身裙",
    "Dresses": "连衣裙",
    "Sneakers": "运动鞋",
    "Boots": "短靴",
    "Handbags": "手提包",
    "Backpacks": "双肩包",
    "Hats": "礼帽",
    "Scarves": "围巾",
    "Mugs": "马克杯",
    "Cushions": "抱枕",
}
BRANDS = ("Strider", "Tidewater", "Oriole", "Long Mile", "Paper Crane", "Nordhavn")
CHINESE_BRANDS = ("浪行", "木鱼", "南山", "小满", "青禾", "云雀")
CHINESE_SHARE = 0.5
MOST_COLOURS = 8


def generate_colour_sample(path: Path | str, products: int = 1500, seed: int = 0) -> FeedSummary:
    """Writes products in several colours as a feed in the own schema.

    Args:
        path: the .parquet file to write.
        products: how many designs; each becomes two to eight rows.
        seed: the same seed gives the same products.

    Raises:
        FeedError: the name does not end in .parquet.
        ValueError: products is not positive.
    """
    if products < 1:
        raise ValueError(f"products is {products}; at least 1 is needed")
    camera = Camera(seed)
    return write_feed(path, (row for number in range(products) for row in _design(number, seed, camera)))


def _design(number: int, seed: int, camera: Camera) -> Iterator[Product]:
    chance = random.Random(f"{seed}/colours/{number}")
    category = chance.choice([path for path in TAXONOMY if path[2] in CHINESE_NOUNS])
    chinese = chance.random() < CHINESE_SHARE
    model = f"{chance.choice('ABCDEFGHK')}{number:05d}"  # sets apart designs of one brand
    if chinese:
        title = f"{chance.choice(CHINESE_BRANDS)}{{colour}}{CHINESE_NOUNS[category[2]]} {model}"
    else:
        title = f"{chance.choice(BRANDS)} {{colour}} {chance.choice(TAXONOMY[category])} {model}"
    pattern = chance.choices(("plain", "striped", "dotted", "checked"), (55, 17, 14, 14))[0]
    accent = chance.choice(ACCENTS)
    colours = chance.sample(list(PALETTE), chance.randint(2, MOST_COLOURS))
    for colour in colours:
        label = CHINESE[colour][0] if chinese else colour
        main = shifted(PALETTE[colour], chance, 9)
        yield Product(
            id=f"{model}-{colour.lower().replace(' ', '-')}",
            images=(camera.photograph(category[2], main, accent, pattern, f"{seed}/{number}", chance),),
            title=title.replace("{colour}", label),
            category=category,
            entities={"base_colour": label},
            split="train",  # the matcher splits by group, see `colour_groups.py`
        )
