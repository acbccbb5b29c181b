"""JPEG 1000x1000 to 224x224 pixels: the served decoder against plain Pillow (decode, then bicubic resize)."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from catalogue.images import decode_image

SIDE, TARGET = 1000, 224
GOAL_RATIO, GOAL_DIFFERENCE = 5.0, 4.0


def photograph(seed: int) -> bytes:
    """A JPEG with the smooth areas and the grain of a photograph."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    grain = chance.normal(0, 2, (SIDE, SIDE, 1))
    picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def with_pillow(data: bytes) -> np.ndarray:
    """What one would write: open, convert, resize."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((TARGET, TARGET), Image.Resampling.BICUBIC))


def measure(quick: bool) -> dict[str, Any]:
    """One row: median milliseconds of both, their ratio and the mean difference of their pixels."""
    photographs = [photograph(seed) for seed in range(4)]
    times: dict[str, list[float]] = {"ours": [], "pillow": []}
    for _ in range(5 if quick else 20):
        for data in photographs:  # in turn, so that a slow moment of the machine hits both
            for name, decode in (("ours", lambda data: decode_image(data, TARGET, TARGET)), ("pillow", with_pillow)):
                start = time.perf_counter()
                decode(data)
                times[name].append(1e3 * (time.perf_counter() - start))
    gaps = [np.abs(decode_image(data, TARGET, TARGET).astype(float) - with_pillow(data)).mean() for data in photographs]
    ours, pillow = np.array(times["ours"]), np.array(times["pillow"])
    ratios = pillow / ours
    low, high = np.percentile(ratios, [20, 80])
    return {
        "measured": "JPEG decoding",
        "jpeg_bytes": int(np.mean([len(data) for data in photographs])),
        "decode_ms": float(np.median(ours)),
        "pillow_ms": float(np.median(pillow)),
        "ratio": float(np.median(ratios)),
        "noise": {"ratio": float((high - low) / np.median(ratios))},
        "mean_pixel_difference": float(np.mean(gaps)),
        "goal": f"at least {GOAL_RATIO:g} times as fast, within {GOAL_DIFFERENCE:g}/255",
        "reached": bool(np.median(ratios) >= GOAL_RATIO and np.mean(gaps) <= GOAL_DIFFERENCE),
    }
