"""A contact sheet of matched photos: a row a product, under every photo its label.

Pillow's own font has no Chinese characters; labels are therefore shown with their place among the product's labels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

WIDTH, PHOTO, HEIGHT = 150, 130, 182
NEUTRAL, RIGHT, WRONG = "#24292f", "#1a7f37", "#cf222e"


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo with the label that it got.

    Attributes:
        image: the image file.
        label: the label.
        index: its place among the labels of the product.
        probability: of the label.
        right: whether that is known to be so; None when nobody knows.
    """

    image: bytes
    label: str
    index: int
    probability: float
    right: bool | None = None


def draw_colour_sheet(products: Sequence[Sequence[LabelledPhoto]], path: Path) -> None:
    """Draws products to a picture; the format follows from the name.

    Raises:
        OSError: a photo cannot be read, or the picture not be written.
        ValueError: the name's ending is no picture format, or there is no photo.
    """
    if not any(products):
        raise ValueError("there is no photo to draw")
    sheet = Image.new("RGB", (WIDTH * max(map(len, products)), HEIGHT * len(products)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, photos in enumerate(products):
        for column, photo in enumerate(photos):
            left, top = column * WIDTH, row * HEIGHT
            picture = ImageOps.contain(Image.open(io.BytesIO(photo.image)).convert("RGB"), (WIDTH - 16, PHOTO))
            sheet.paste(picture, (left + (WIDTH - picture.width) // 2, top + 6))
            colour = NEUTRAL if photo.right is None else RIGHT if photo.right else WRONG
            pen.text((left + 8, top + PHOTO + 12), f"{photo.index}: {photo.label}"[:22], colour, font_size=13)
            pen.text((left + 8, top + PHOTO + 29), f"{photo.probability:.3f}", colour, font_size=12)
    sheet.save(path)
