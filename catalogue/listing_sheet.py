"""A contact sheet of listings: photo, title and how probable it is that they belong together."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

COLUMNS, WIDTH, PHOTO, HEIGHT = 6, 190, 170, 250
LINE, LINES = 28, 3
INK = "#24292f"


def draw_listing_sheet(listings: Sequence[tuple[bytes, str, float]], path: Path) -> None:
    """Draws listings (image file, title, probability) to a picture, row by row; the format follows from the name.

    Raises:
        OSError: a photo cannot be read, or the picture not be written.
        ValueError: the name's ending is no picture format, or there is no listing.
    """
    if not listings:
        raise ValueError("there is no listing to draw")
    rows = -(-len(listings) // COLUMNS)
    sheet = Image.new("RGB", (WIDTH * min(COLUMNS, len(listings)), HEIGHT * rows), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (image, title, probability) in enumerate(listings):
        left, top = place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT
        picture = ImageOps.contain(Image.open(io.BytesIO(image)).convert("RGB"), (WIDTH - 16, PHOTO))
        sheet.paste(picture, (left + (WIDTH - picture.width) // 2, top + 6))
        pen.text((left + 8, top + PHOTO + 12), f"{place + 1}.  {probability:.3f}", INK, font_size=13)
        wrapped = textwrap.wrap(title, LINE, max_lines=LINES, placeholder=" …")
        pen.text((left + 8, top + PHOTO + 30), "\n".join(wrapped), INK, font_size=12)
    sheet.save(path)
