from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogue.colour_sheet import HEIGHT, WIDTH, LabelledPhoto, draw_colour_sheet


def photo(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 40), colour).save(file, "PNG")
    return file.getvalue()


def test_rows_are_products_and_photos_stand_in_order(tmp_path: Path) -> None:
    red, blue = (LabelledPhoto(photo(name), name, 0, 0.5, right=True) for name in ("red", "blue"))
    draw_colour_sheet([[red, blue], [blue]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    middle = [pixels[row * HEIGHT + 60, column * WIDTH + WIDTH // 2].tolist() for row in (0, 1) for column in (0, 1)]
    assert middle == [[255, 0, 0], [0, 0, 255], [0, 0, 255], [255, 255, 255]]


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photo"):
        draw_colour_sheet([[]], tmp_path / "sheet.png")
