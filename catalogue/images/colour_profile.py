"""Colours as their ICC profile means them, in sRGB: what a browser shows of a Display P3 photo or a CMYK print file.

A profile is read once, then kept with what it does; one that is broken, or made for other channels than the picture
has, is ignored, as viewers do. Most files in the wild say sRGB, in dozens of spellings: a profile that moves no colour
of a grid by more than `UNSEEN` counts as sRGB, and costs nothing from then on. Applied to the reduced picture, by
LittleCMS in Pillow.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4 * 2**20
"""Bytes; larger ones are ignored. Those of printers have 0.5 to 2 MiB."""
CHANNELS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
UNSEEN = 2
"""Of 255: sRGB against itself differs by 1, through rounding."""
LEVELS = np.linspace(0, 255, 9, dtype=np.uint8)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture in sRGB.

    Args:
        image: in the mode RGB, RGBA, L or CMYK.
        profile: of its colours, as it stands in the file; None or a useless one leaves the picture as it is.

    Returns:
        RGB or RGBA where there was something to do, else the picture itself.
    """
    if not profile or len(profile) > MAX_PROFILE:
        return image
    colours = image.convert("RGB") if image.mode == "RGBA" else image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    shown = ImageCms.applyTransform(colours, transform)
    if shown is not None and image.mode == "RGBA":
        shown.putalpha(image.getchannel("A"))
    return shown or image


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What a profile does to pixels of a mode; None where that is nothing, or nothing sensible."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if CHANNELS.get(opened.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.ImageCmsTransform(opened, SRGB, mode, "RGB")
        grid = _grid(mode)
        moved = np.asarray(ImageCms.applyTransform(grid, transform), np.int16) - np.asarray(grid.convert("RGB"))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # broken in one of many ways
        return None
    return None if mode != "CMYK" and np.abs(moved).max() <= UNSEEN else transform


def _grid(mode: str) -> Image.Image:
    """Colours from all over the cube."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    cube = np.stack(np.meshgrid(*[LEVELS] * len(mode)), -1).reshape(1, -1, len(mode))
    return Image.fromarray(cube, mode=mode)
