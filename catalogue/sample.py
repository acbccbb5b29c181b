"""A generated catalogue: drawn products in a three-level taxonomy, so that everything runs without any download.

Products come in families: one design by one brand in one to four colours, whose titles differ in the colour word alone.
Titles carry the noise of real feeds: missing brands, misspellings, odd word order, marketing words, words that several
categories share ("shoes", "bag"), no word for the category at all, now and then no title. Pictures show the design in
one to three views with their own angle, distance, background and light; about 1 % of the products have none.
A brand has colours of its own for details, so that its name says something about the picture, as brands do.
Everything follows from the seed. A family lies in one split: the split is that of the family's key, see `split_of`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from catalogue.drawings import DRAWINGS
from catalogue.feed import FeedSummary, write_feed
from catalogue.pen import Colour, Pen, Style, mix
from catalogue.product import Product, split_of

IMAGE_HEIGHT = 128
IMAGE_WIDTH = 96
SUPERSAMPLING = 2

COLOURS: dict[str, Colour] = {
    "Black": (48, 46, 50),
    "White": (240, 240, 238),
    "Grey": (142, 144, 148),
    "Red": (204, 42, 46),
    "Maroon": (118, 28, 46),
    "Blue": (46, 104, 200),
    "Navy Blue": (34, 46, 98),
    "Teal": (30, 138, 138),
    "Green": (52, 146, 68),
    "Olive": (118, 118, 52),
    "Yellow": (238, 204, 64),
    "Orange": (236, 132, 42),
    "Pink": (236, 136, 170),
    "Purple": (118, 66, 156),
    "Brown": (122, 80, 48),
    "Beige": (216, 194, 158),
}

ACCENTS: tuple[Colour, ...] = (
    (228, 66, 52),
    (250, 196, 40),
    (40, 160, 96),
    (38, 110, 214),
    (240, 122, 30),
    (150, 70, 180),
    (30, 178, 190),
    (238, 92, 150),
    (248, 246, 240),
    (36, 36, 40),
)


@dataclass(frozen=True)
class Department:
    """What the products of a top-level category have in common.

    Attributes:
        brands: who makes them; some are ordinary words with a private meaning.
        adjectives: words of its titles.
        audiences: for whom, () where nobody says.
        usages: values of the entity "usage".
    """

    brands: tuple[str, ...]
    adjectives: tuple[str, ...]
    audiences: tuple[str, ...]
    usages: tuple[str, ...]


FASHION_BRANDS = ("Kerosene", "Blue Heron", "Winter Goose", "Velvet Fox", "Marlowe & Finch", "Tidewater", "Nordhavn")
PEOPLE = ("Men", "Women", "Unisex", "Girls", "Boys")

DEPARTMENTS: dict[str, Department] = {
    "Apparel": Department(
        (*FASHION_BRANDS, "Orchard Street", "Halden", "Paper Crane"),
        ("Cotton", "Slim Fit", "Printed", "Classic", "Washed", "Soft", "Relaxed", "Knitted"),
        PEOPLE,
        ("Casual", "Formal", "Sports"),
    ),
    "Footwear": Department(
        ("Kerosene", "Winter Goose", "Tidewater", "Strider", "Long Mile", "Cobble Lane", "Red Lantern"),
        ("Leather", "Everyday", "Light", "Suede", "Comfort", "Classic"),
        PEOPLE,
        ("Casual", "Formal", "Sports"),
    ),
    "Accessories": Department(
        (*FASHION_BRANDS, "Copper Owl", "Halden", "Lumière"),
        ("Leather", "Classic", "Elegant", "Vintage", "Modern", "Everyday"),
        PEOPLE,
        ("Casual", "Formal", "Travel"),
    ),
    "Beauty": Department(
        ("Lumière", "Iron Lily", "Rosewater", "Velvet Fox"),
        ("Long Lasting", "Matte", "Glossy", "Intense", "Floral"),
        ("Women", "Unisex"),
        ("Casual", "Party"),
    ),
    "Home": Department(
        ("Hearth & Oak", "Paper Crane", "Stillwater", "Nordhavn", "Red Lantern"),
        ("Handmade", "Stoneware", "Solid", "Compact", "Rustic", "Modern"),
        (),
        ("Home",),
    ),
    "Stationery": Department(
        ("Inkwell", "Paper Crane", "Foolscap"),
        ("Lined", "Recycled", "Illustrated", "Premium"),
        (),
        ("Office", "School"),
    ),
    "Electronics": Department(
        ("Voltair", "Quanta", "Blue Heron", "Oriole"),
        ("Wireless", "Compact", "Smart", "Pro", "Ultra Thin"),
        (),
        ("Home", "Office", "Travel"),
    ),
    "Leisure": Department(
        ("Strider", "Tidewater", "Oriole", "Long Mile", "Tin Soldier"),
        ("Junior", "Professional", "Light", "Outdoor", "Classic"),
        (),
        ("Sports", "Home"),
    ),
}

TAXONOMY: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("Apparel", "Topwear", "T-Shirts"): ("T-Shirt", "Tee", "Tshirt", "Top"),
    ("Apparel", "Topwear", "Shirts"): ("Shirt", "Button-Down Shirt", "Top"),
    ("Apparel", "Topwear", "Sweaters"): ("Sweater", "Pullover", "Jumper", "Top"),
    ("Apparel", "Topwear", "Jackets"): ("Jacket", "Blazer", "Coat"),
    ("Apparel", "Bottomwear", "Trousers"): ("Trousers", "Chinos", "Pants"),
    ("Apparel", "Bottomwear", "Shorts"): ("Shorts", "Bermudas", "Pants"),
    ("Apparel", "Bottomwear", "Skirts"): ("Skirt", "Midi Skirt"),
    ("Apparel", "One-Piece", "Dresses"): ("Dress", "Summer Dress"),
    ("Footwear", "Closed Shoes", "Sneakers"): ("Sneakers", "Trainers", "Running Shoes", "Shoes"),
    ("Footwear", "Closed Shoes", "Boots"): ("Boots", "Ankle Boots", "Shoes"),
    ("Footwear", "Closed Shoes", "Heels"): ("Heels", "Pumps", "Shoes"),
    ("Footwear", "Open Shoes", "Sandals"): ("Sandals", "Strap Sandals", "Shoes"),
    ("Footwear", "Open Shoes", "Flip Flops"): ("Flip Flops", "Beach Slippers", "Sandals"),
    ("Accessories", "Bags", "Handbags"): ("Handbag", "Tote", "Bag"),
    ("Accessories", "Bags", "Backpacks"): ("Backpack", "Rucksack", "Bag"),
    ("Accessories", "Bags", "Wallets"): ("Wallet", "Purse", "Card Holder"),
    ("Accessories", "Jewellery", "Rings"): ("Ring", "Stone Ring"),
    ("Accessories", "Jewellery", "Necklaces"): ("Necklace", "Pendant", "Chain"),
    ("Accessories", "Jewellery", "Watches"): ("Watch", "Analog Watch"),
    ("Accessories", "Eyewear", "Sunglasses"): ("Sunglasses", "Shades", "Glasses"),
    ("Accessories", "Eyewear", "Eyeglasses"): ("Eyeglasses", "Reading Glasses", "Glasses"),
    ("Accessories", "Headwear", "Hats"): ("Hat", "Fedora", "Headwear"),
    ("Accessories", "Headwear", "Caps"): ("Cap", "Baseball Cap", "Headwear"),
    ("Accessories", "Soft Accessories", "Scarves"): ("Scarf", "Muffler", "Wrap"),
    ("Accessories", "Soft Accessories", "Ties"): ("Tie", "Necktie"),
    ("Accessories", "Soft Accessories", "Belts"): ("Belt", "Buckle Belt"),
    ("Accessories", "Soft Accessories", "Gloves"): ("Gloves", "Mittens"),
    ("Accessories", "Rainwear", "Umbrellas"): ("Umbrella", "Parasol"),
    ("Beauty", "Fragrance", "Perfumes"): ("Perfume", "Eau de Parfum", "Bottle"),
    ("Beauty", "Make-up", "Lipsticks"): ("Lipstick", "Lip Colour"),
    ("Beauty", "Make-up", "Nail Polish"): ("Nail Polish", "Nail Lacquer", "Bottle"),
    ("Home", "Kitchen", "Mugs"): ("Mug", "Coffee Cup", "Tableware"),
    ("Home", "Kitchen", "Plates"): ("Plate", "Dinner Plate", "Tableware"),
    ("Home", "Kitchen", "Teapots"): ("Teapot", "Tea Kettle", "Tableware"),
    ("Home", "Kitchen", "Pans"): ("Frying Pan", "Skillet", "Pan"),
    ("Home", "Furniture", "Chairs"): ("Chair", "Dining Chair", "Seat"),
    ("Home", "Furniture", "Tables"): ("Table", "Coffee Table", "Desk"),
    ("Home", "Furniture", "Sofas"): ("Sofa", "Couch", "Seat"),
    ("Home", "Decoration", "Lamps"): ("Lamp", "Table Lamp", "Light"),
    ("Home", "Decoration", "Cushions"): ("Cushion", "Throw Pillow"),
    ("Stationery", "Paper", "Books"): ("Book", "Hardcover", "Novel"),
    ("Stationery", "Paper", "Notebooks"): ("Notebook", "Spiral Notebook", "Book"),
    ("Stationery", "Writing", "Pencils"): ("Pencil", "Sketching Pencil"),
    ("Electronics", "Mobile", "Phones"): ("Phone", "Smartphone", "Device"),
    ("Electronics", "Computers", "Laptops"): ("Laptop", "Notebook Computer", "Device"),
    ("Electronics", "Audio", "Headphones"): ("Headphones", "Headset"),
    ("Electronics", "Photo", "Cameras"): ("Camera", "Digital Camera", "Device"),
    ("Leisure", "Music", "Guitars"): ("Guitar", "Acoustic Guitar"),
    ("Leisure", "Sport", "Balls"): ("Ball", "Football", "Basketball"),
    ("Leisure", "Sport", "Rackets"): ("Racket", "Tennis Racket"),
    ("Leisure", "Sport", "Bicycles"): ("Bicycle", "City Bike"),
    ("Leisure", "Toys", "Toy Cars"): ("Toy Car", "Model Car"),
}
"""The words of each category; the last one may be shared with a neighbour."""

SERIES = ("Aria", "Nova", "Montana", "Luna", "Atlas", "Echo", "Riva", "Sierra", "Onyx", "Vega", "Juno", "Orion")
MARKETING = ("New", "Sale!", "Best Seller", "- Free Shipping", "Limited Edition", "Gift Idea", "(Pack of 1)", "2024")
SEASONS = ("Spring", "Summer", "Fall", "Winter")
SEASONAL = {
    **dict.fromkeys(("Sweaters", "Gloves", "Scarves", "Boots"), "Winter"),
    **dict.fromkeys(("Shorts", "Sandals", "Flip Flops", "Sunglasses", "Dresses", "T-Shirts"), "Summer"),
    "Jackets": "Fall",
}

NO_IMAGE = 0.01
NO_TITLE = 0.015
NO_CATEGORY_WORD = 0.07
SHARED_WORD = 0.10


def generate_sample(path: Path | str, products: int = 4000, seed: int = 0) -> FeedSummary:
    """Writes a generated catalogue as a feed in the own schema.

    Args:
        path: the .parquet file to write.
        products: how many; from 52 on, every category has at least one.
        seed: the same seed gives the same catalogue.

    Raises:
        FeedError: the name does not end in .parquet.
        ValueError: products is not positive.
    """
    if products < 1:
        raise ValueError(f"products is {products}; at least 1 is needed")
    return write_feed(path, sample_products(products, seed))


def sample_products(products: int, seed: int = 0) -> Iterator[Product]:
    """The products of a generated catalogue, see `generate_sample`; pictures are JPEG, 96x128 pixels."""
    chance = random.Random(seed)
    camera = Camera(seed)
    paths = list(TAXONOMY)
    chance.shuffle(paths)
    # A mildly long tail: the most frequent category has about four times the products of the rarest.
    weights = [1 / (1 + 3 * place / len(paths)) for place in range(len(paths))]
    made = 0
    family = 0
    while made < products:
        path = paths[family] if family < len(paths) else chance.choices(paths, weights)[0]
        # The first round shows every category; its families have one colour so that few products suffice.
        colours = 1 if family < len(paths) else chance.choices((1, 2, 3, 4), (55, 20, 15, 10))[0]
        for product in islice(_family(f"{family:06d}", path, colours, seed, camera), products - made):
            yield product
            made += 1
        family += 1


def _family(key: str, path: tuple[str, str, str], colours: int, seed: int, camera: Camera) -> Iterator[Product]:
    chance = random.Random(f"{seed}/{key}")
    department = DEPARTMENTS[path[0]]
    brand = chance.choice(department.brands)
    words = _title_words(path, brand, chance, keep_colour=colours > 1)
    season = SEASONAL.get(path[2]) if chance.random() < 0.6 else None
    entities = {
        "brand": brand,
        "season": season or chance.choice(SEASONS),
        "usage": chance.choice(department.usages),
        "sub_category": path[1],
    }
    for group, absent in (("brand", 0.04), ("season", 0.10), ("usage", 0.05)):
        if chance.random() < absent:
            del entities[group]
    pattern = chance.choices(("plain", "striped", "dotted", "checked"), (55, 17, 14, 14))[0]
    accents = [ACCENTS[place] for place in _brand_accents(brand)]
    untitled = colours == 1 and chance.random() < NO_TITLE
    for colour in chance.sample(list(COLOURS), colours):
        main = shifted(COLOURS[colour], chance, 9)
        accent = max(accents, key=lambda candidate: (_distance(candidate, main) > 90, -accents.index(candidate)))
        title = "" if untitled else " ".join(word.replace("{colour}", colour) for word in words)
        views = 0 if title and chance.random() < NO_IMAGE else chance.choices((1, 2, 3), (60, 28, 12))[0]
        yield Product(
            id=f"{key}-{colour.lower().replace(' ', '-')}",
            images=tuple(
                camera.photograph(path[2], main, accent, pattern, f"{seed}/{key}", chance) for _ in range(views)
            ),
            title=title,
            category=path,
            entities={"base_colour": colour, **entities},
            split=split_of(key),
        )


# Titles


def _title_words(path: tuple[str, str, str], brand: str, chance: random.Random, keep_colour: bool) -> list[str]:
    """The words of a family's title, with "{colour}" where the colour goes."""
    department = DEPARTMENTS[path[0]]
    *own, last = TAXONOMY[path]
    noun = last if chance.random() < SHARED_WORD else chance.choice(own)
    if chance.random() < NO_CATEGORY_WORD:
        noun = f"{chance.choice(SERIES)} {chance.randrange(10, 1000)}"
    elif chance.random() < 0.25:
        noun = f"{chance.choice(SERIES)} {noun}"
    words = [brand] if chance.random() < 0.86 else []
    if department.audiences and chance.random() < 0.8:
        words.append(chance.choice(department.audiences))
    words.append("{colour}")
    if chance.random() < 0.7:
        words.append(chance.choice(department.adjectives))
    words.append(noun)
    if not keep_colour and chance.random() < 0.12:
        words.remove("{colour}")
    if chance.random() < 0.12:
        chance.shuffle(words)
    if chance.random() < 0.10:
        place = chance.randrange(len(words))
        words[place] = _misspelt(words[place], chance)
    if chance.random() < 0.2:
        marketing = chance.choice(MARKETING)
        words = [*words, marketing] if chance.random() < 0.6 else [marketing.strip("- "), *words]
    if chance.random() < 0.08:
        words = [word if word == "{colour}" else word.upper() for word in words]
    elif chance.random() < 0.08:
        words = [word if word == "{colour}" else word.lower() for word in words]
    return words


def _misspelt(word: str, chance: random.Random) -> str:
    """The word with one letter doubled, dropped, or exchanged with the next; short words and the colour stay."""
    if len(word) < 4 or word == "{colour}":
        return word
    place = chance.randrange(1, len(word) - 1)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    return chance.choice((before + letter + letter + after, before + after, before + after[0] + letter + after[1:]))


# Pictures


class Camera:
    """Takes pictures of drawn products, each under its own angle, distance, background and light."""

    def __init__(self, seed: int) -> None:
        # Pictures are worked on as [rows, columns * 3], which broadcasts far faster than a last axis of 3.
        generator = np.random.default_rng(seed)
        self._grain = generator.standard_normal((IMAGE_HEIGHT * 2, IMAGE_WIDTH * 2 * 3), dtype=np.float32)
        self._across = np.repeat(np.linspace(-1, 1, IMAGE_WIDTH, dtype=np.float32), 3)
        self._down = np.linspace(-1, 1, IMAGE_HEIGHT, dtype=np.float32)[:, None]

    def photograph(
        self, category: str, main: Colour, accent: Colour, pattern: str, shape_seed: str, chance: random.Random
    ) -> bytes:
        """One view, as a JPEG of 96x128 pixels.

        Args:
            category: whose drawing, a key of `DRAWINGS`.
            main: colour of the product.
            accent: colour of its details.
            pattern: see `Style`.
            shape_seed: names the design; equal seeds give the same dimensions.
            chance: decides about this view.
        """
        canvas = _background(chance)
        pen = Pen(
            canvas,
            angle=math.radians(chance.gauss(0, 11)),
            scale=chance.uniform(0.66, 1.05),
            tilt=chance.gauss(0, 0.12),
            squeeze=chance.uniform(0.72, 1.0),
            mirrored=chance.random() < 0.5,
            shift=(chance.gauss(0, 0.045), chance.gauss(0, 0.045)),
        )
        DRAWINGS[category](pen, Style(main, accent, pattern, random.Random(shape_seed)))
        if chance.random() < 0.1:
            _sticker(canvas, chance)
        pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32).reshape(IMAGE_HEIGHT, -1)
        cast = np.array([chance.uniform(0.94, 1.06) for _ in range(3)], dtype=np.float32)
        light = chance.uniform(0.72, 1.12) * np.tile(cast, IMAGE_WIDTH)
        light *= 1 + chance.uniform(-0.15, 0.15) * self._across
        falloff = 1 + chance.uniform(-0.15, 0.15) * self._down
        top, left = chance.randrange(IMAGE_HEIGHT), 3 * chance.randrange(IMAGE_WIDTH)
        grain = self._grain[top : top + IMAGE_HEIGHT, left : left + 3 * IMAGE_WIDTH] * chance.uniform(1, 8)
        pixels = np.clip(pixels * light * falloff + grain, 0, 255).astype(np.uint8)
        picture = pixels.reshape(IMAGE_HEIGHT, IMAGE_WIDTH, 3)
        return simplejpeg.encode_jpeg(picture, quality=chance.randrange(70, 93), colorsubsampling="420")


def _background(chance: random.Random) -> Image.Image:
    size = (IMAGE_WIDTH * SUPERSAMPLING, IMAGE_HEIGHT * SUPERSAMPLING)
    kind = chance.random()
    if kind < 0.4:
        return Image.new("RGB", size, (252, 252, 252))
    wall = mix(chance.choice(list(COLOURS.values())), (245, 243, 238), chance.uniform(0.45, 0.95))
    canvas = Image.new("RGB", size, wall)
    if kind < 0.75:
        return canvas
    horizon = round(size[1] * chance.uniform(0.55, 0.85))
    floor = mix(wall, chance.choice(((120, 90, 60), (90, 90, 96), (230, 226, 220))), chance.uniform(0.3, 0.8))
    canvas.paste(floor, (0, horizon, *size))
    return canvas


def _sticker(canvas: Image.Image, chance: random.Random) -> None:
    """A round price sticker that hides a part of the picture."""
    pen = Pen(canvas, scale=1.0)
    x, y = chance.choice((-0.7, 0.7)), chance.choice((-0.9, 0.9))
    pen.ellipse(x, y, 0.28, 0.28, chance.choice(ACCENTS))
    pen.line([(x - 0.15, y), (x + 0.15, y)], 0.08, (255, 255, 255))


def _brand_accents(brand: str) -> tuple[int, int]:
    """The two accents of a brand; the second is for products on which the first would not be seen."""
    first = random.Random(brand).randrange(len(ACCENTS))
    return first, (first + 4) % len(ACCENTS)


def shifted(colour: Colour, chance: random.Random, most: int) -> Colour:
    """A colour with each channel moved at random by up to `most`."""
    red, green, blue = (min(255, max(0, value + chance.randint(-most, most))) for value in colour)
    return red, green, blue


def _distance(a: Colour, b: Colour) -> float:
    return math.dist(a, b)
