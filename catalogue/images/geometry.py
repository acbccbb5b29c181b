"""Where a picture lies in the picture of the size that is wanted: aspect ratio kept, centred, white around it."""

from __future__ import annotations

import numpy as np

WHITE = 255


def fitted_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Height and width of the largest picture of the given aspect ratio that fits the target; at least 1 pixel."""
    scale = min(target_height / height, target_width / width)
    return (
        min(target_height, max(1, round(height * scale))),
        min(target_width, max(1, round(width * scale))),
    )


def letterbox(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture [h, w, 3] that fits in the middle of a white one, uint8 [height, width, 3]."""
    picture = np.full((height, width, 3), WHITE, dtype=np.uint8)
    top = (height - pixels.shape[0]) // 2
    left = (width - pixels.shape[1]) // 2
    picture[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return picture
