"""How a stored picture has to be turned to be seen upright.

One rule for all formats, that of browsers: the tag Orientation of EXIF data counts, with the value 1 where the data are
broken; XMP and ImageMagick's raw profiles do not. Only this one tag is read, here and not by a library, since libraries
parse all that there is, and complain about it. TIFF 6.0 section 2 and EXIF 2.32 section 4.6.4.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

ORIENTATION = 0x0112
SHORT, LONG = 3, 4
UPRIGHT = 1
SWAPS_AXES = (5, 6, 7, 8)


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that EXIF data (a TIFF file, with or without "Exif" in front) ask for; 1 if broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return UPRIGHT
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    directory = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[directory : directory + 2], order)
    for at in range(directory + 2, min(directory + 2 + 12 * entries, len(tiff) - 11), 12):
        if int.from_bytes(tiff[at : at + 2], order) == ORIENTATION:
            size = {SHORT: 2, LONG: 4}.get(int.from_bytes(tiff[at + 2 : at + 4], order), 0)
            value = int.from_bytes(tiff[at + 8 : at + 8 + size], order)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture [H, W, 3] as it is to be seen, [H, W, 3] or [W, H, 3]; a view."""
    if orientation in SWAPS_AXES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
