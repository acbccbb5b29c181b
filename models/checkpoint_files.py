"""A checkpoint folder before its weights are loaded: its kind, whether its files are whole, what it does to pixels.

What is wrong is said in a sentence with the file's name: FileNotFoundError for one that is missing, ValueError for all
else. What a folder's processor does is read off its output for a black and a white image, whichever of the two files
describes it: some scale twice, some not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor
from transformers.utils import logging as transformers_logging

WEIGHTS = "model.safetensors"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second since transformers 5
GIT_LFS = b"version https://git-lfs"


def checkpoint_kind(folder: Path, kinds: Sequence[str], part: str) -> str:
    """The `model_type` of a checkpoint folder whose files are whole.

    Args:
        folder: the checkpoint.
        kinds: that are understood.
        part: "vision" or "text"; a folder may also hold this tower alone, of a kind that has two.

    Raises:
        FileNotFoundError: config.json or weights are missing.
        ValueError: a file is cut, a pointer of Git LFS or no JSON, or the kind is another.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no Hugging Face checkpoint folder: config.json is missing")
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with file.open("rb") as content:
            if content.read(len(GIT_LFS)) == GIT_LFS:
                raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` there")
    config = _json(folder / "config.json")
    kind = str(config.get("model_type") or config.get("architecture"))  # timm writes the latter
    if kind.removesuffix(f"_{part}_model") not in kinds:
        raise ValueError(f"the checkpoint in {folder} is of kind {kind!r}; the {part} encoder takes {', '.join(kinds)}")
    names = [WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file() and not (folder / WEIGHTS).is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    for name in names:
        if not (folder / name).is_file():
            others = sorted(file.name for suffix in ("bin", "h5", "msgpack") for file in folder.glob(f"*.{suffix}"))
            advice = f"; {others[0]} is not read, convert it to safetensors" if others else ""
            raise FileNotFoundError(f"{folder} has no weights: {name} is missing{advice}")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is cut or no safetensors file: {error}") from error
    return kind


def pixel_statistics(folder: Path) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` that a folder's image processor normalises pixels between 0 and 1 with; empty without one.

    Raises:
        ValueError: the processor cannot be read.
    """
    described = [_json(folder / name) for name in PROCESSORS if (folder / name).is_file()]
    if not any({"image_processor", "image_processor_type", "image_mean"} & set(content) for content in described):
        return {}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would tell that torchvision is not there
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        flat = (Image.new("RGB", (64, 64), (level,) * 3) for level in (0, 255))
        black, white = (_centre(processor(image, return_tensors="np")["pixel_values"][0]) for image in flat)
    except Exception as error:  # as many kinds as there are processors
        raise ValueError(f"the image processor in {folder} cannot be read: {sentence(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    std = 1 / (white - black)
    return {"mean": tuple(np.round(-black * std, 6).tolist()), "std": tuple(np.round(std, 6).tolist())}


def sentence(error: Exception) -> str:
    """The beginning of an error's message on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _centre(pixels: np.ndarray) -> np.ndarray:
    """A pixel of [3, H, W], or of [P, patch · patch · 3] as SigLIP2's processor gives them."""
    inside = pixels[0, :3] if pixels.ndim == 2 else pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]
    return inside.astype(np.float64)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no object of names and values")
    return content
