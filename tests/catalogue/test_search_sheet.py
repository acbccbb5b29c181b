import io
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from catalogue.product import Product
from catalogue.search_sheet import HEIGHT, MATCHED, WIDTH, SheetHit, SheetSearch, draw_search_sheet, sheet_hits


@dataclass(frozen=True)
class Hit:
    product_id: str
    photo: int
    score: float = 0.5
    matched: tuple[str, ...] = field(default=())


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 80), colour).save(file, "PNG")
    return file.getvalue()


def test_hits_are_shown_with_the_photo_that_matched() -> None:
    photos = (picture("red"), picture("blue"))
    feed = [Product("a", photos, "Red shoe", (), {}, "test"), Product("b", (), "No photo", (), {}, "test")]
    first, second, third = sheet_hits([Hit("a", 1), Hit("b", 0), Hit("gone", 0)], feed)
    assert (first.image, first.title) == (photos[1], "Red shoe")
    assert (second.image, second.title) == (None, "No photo")
    assert (third.image, third.title) == (None, "gone")


def test_a_sheet_has_a_row_a_search_and_frames_what_matched(tmp_path: Path) -> None:
    hits = [SheetHit(picture("blue"), "A shoe", 0.9, ("brand",)), SheetHit(None, "Another", 0.8)]
    searches = [SheetSearch("red shoe by somebody", None, hits), SheetSearch("photo", picture("green"), hits[:1])]
    draw_search_sheet(searches, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (3 * WIDTH, 2 * HEIGHT)
    frame = tuple(int(MATCHED[place : place + 2], 16) for place in (1, 3, 5))
    assert sheet.getpixel((WIDTH + 2, 60)) == frame
    assert sheet.getpixel((2 * WIDTH + 2, 60)) == (255, 255, 255)
    assert sheet.getpixel((WIDTH + WIDTH // 2, 70)) == (0, 0, 255)
    assert sheet.getpixel((WIDTH // 2, HEIGHT + 70)) == (0, 128, 0)
    with pytest.raises(ValueError, match="no search to draw"):
        draw_search_sheet([], tmp_path / "empty.png")


def test_accents_that_the_font_lacks_are_left_out(tmp_path: Path) -> None:
    drawn = []
    for title in ("Crème brûlée Lumière", "Creme brulee Lumiere"):
        draw_search_sheet([SheetSearch(title, None, [SheetHit(None, title, 0.5)])], tmp_path / "sheet.png")
        drawn.append((tmp_path / "sheet.png").read_bytes())
    assert drawn[0] == drawn[1]
