"""A contact sheet of searches: a row a search, what was asked at the left, then the hits, best first.

A green frame says that the product is in all that was asked for by name (brand, colour …) as asked.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageOps

from catalogue.product import Product

WIDTH, PHOTO, HEIGHT = 150, 150, 214
TEXT, FAINT, MATCHED = "#24292f", "#57606a", "#1a7f37"
LINE = 21  # letters that fit


@dataclass(frozen=True)
class SheetHit:
    """A product that was found.

    Attributes:
        image: the photo that matched, None when it is not at hand.
        title: of the product.
        score: its similarity.
        matched: groups of entities in which it is as asked.
    """

    image: bytes | None
    title: str
    score: float
    matched: Sequence[str] = ()


@dataclass(frozen=True)
class SheetSearch:
    """A search: its text and its image, and what it found."""

    query: str
    image: bytes | None
    hits: Sequence[SheetHit]


class Found(Protocol):
    """A product of a search's answer."""

    @property
    def product_id(self) -> str: ...
    @property
    def photo(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def matched(self) -> Sequence[str]: ...


def sheet_hits(found: Sequence[Found], feed: Iterable[Product]) -> list[SheetHit]:
    """The products of an answer with titles and photos from a feed; what the feed lacks has neither."""
    wanted = {product.product_id for product in found}
    known = {product.id: product for product in feed if product.id in wanted}
    hits = []
    for hit in found:
        product = known.get(hit.product_id)
        image = product.images[hit.photo] if product is not None and hit.photo < len(product.images) else None
        hits.append(SheetHit(image, product.title if product is not None else hit.product_id, hit.score, hit.matched))
    return hits


def draw_search_sheet(searches: Sequence[SheetSearch], path: Path) -> None:
    """Draws searches to a picture; the format follows from the name.

    Raises:
        OSError: a photo cannot be read, or the picture not be written.
        ValueError: the name's ending is no picture format, or nothing was searched.
    """
    if not searches:
        raise ValueError("there is no search to draw")
    columns = 1 + max(len(search.hits) for search in searches)
    sheet = Image.new("RGB", (WIDTH * columns, HEIGHT * len(searches)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, search in enumerate(searches):
        top = row * HEIGHT
        pen.rectangle((0, top, WIDTH - 10, top + HEIGHT - 10), fill="#f0f3f6")
        if search.image is not None:
            _paste(sheet, search.image, 0, top, WIDTH - 10)
        lines = _lines(search.query)
        first = top + (PHOTO + 10 if search.image is not None else (HEIGHT - 10 - 18 * len(lines)) // 2)
        for number, line in enumerate(lines[:3] if search.image is not None else lines[:9]):
            pen.text((8, first + 18 * number), line, TEXT, font_size=14)
        for column, hit in enumerate(search.hits, start=1):
            _draw_hit(sheet, pen, hit, column * WIDTH, top)
    sheet.save(path)


def _draw_hit(sheet: Image.Image, pen: ImageDraw.ImageDraw, hit: SheetHit, left: int, top: int) -> None:
    if hit.image is not None:
        _paste(sheet, hit.image, left, top, WIDTH)
    if hit.matched:
        pen.rectangle((left + 2, top + 2, left + WIDTH - 4, top + PHOTO + 6), outline=MATCHED, width=2)
    for number, line in enumerate(_lines(hit.title)[:2]):
        pen.text((left + 6, top + PHOTO + 10 + 15 * number), line, TEXT, font_size=12)
    note = f"{hit.score:.2f}  {', '.join(hit.matched)}"
    pen.text((left + 6, top + PHOTO + 41), note[: LINE + 4], MATCHED if hit.matched else FAINT, font_size=11)


def _paste(sheet: Image.Image, image: bytes, left: int, top: int, width: int) -> None:
    picture = ImageOps.contain(Image.open(io.BytesIO(image)).convert("RGB"), (width - 16, PHOTO - 8))
    sheet.paste(picture, (left + (width - picture.width) // 2, top + 6 + (PHOTO - 8 - picture.height) // 2))


def _lines(text: str) -> list[str]:
    """A text in lines that fit, broken between words, without the accents that Pillow's own font cannot draw."""
    lines = [""]
    plain = "".join(part for part in unicodedata.normalize("NFKD", text) if not unicodedata.combining(part))
    for word in plain.split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > LINE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    return [line[:LINE] for line in lines]
