"""The work of the ensemble `categorize` in one process: the same files, one after another, without a server.

This is the limit that serving is measured against, and what every rival wraps: decode, tokenise, the ONNX file. It
reads an exported repository and imports only what the rivals' environment has, not the project; the decoder is the one
that the export copied beside the served model. Rows must have an image and a title: the benchmark's do.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

CONTROL_TO_SPACE = dict.fromkeys((*range(32), *range(127, 160)), " ")


@dataclass(frozen=True)
class Answers:
    """What `categorize` says of B rows.

    category [B, k] str, category_id [B, k] int32 and probability [B, k] float32, most probable first; neighbour_kl
    [B, 1] float32.
    """

    category: np.ndarray
    category_id: np.ndarray
    probability: np.ndarray
    neighbour_kl: np.ndarray

    def rows(self) -> list[dict[str, list]]:
        """A JSON object a row, with the names of the ensemble's outputs."""
        columns = {name: array.tolist() for name, array in vars(self).items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def joined(answers: Sequence[Answers]) -> Answers:
    """Answers of single rows as one."""
    return Answers(**{name: np.concatenate([getattr(part, name) for part in answers]) for name in vars(answers[0])})


@dataclass(frozen=True)
class Embeddings:
    """What a server of embeddings says of B rows: image_embeds and text_embeds, [B, D] float32 each, unit length."""

    image_embeds: np.ndarray
    text_embeds: np.ndarray


class Preprocessing:
    """Image files and titles to what the encoders take, as the served prepare_product does it."""

    def __init__(self, repository: Path) -> None:
        folder = newest(repository, "prepare_product")
        specification = importlib.util.spec_from_file_location("served_images", folder / "images" / "__init__.py")
        assert specification is not None
        assert specification.loader is not None
        images = importlib.util.module_from_spec(specification)
        sys.modules["served_images"] = images  # a package: its files import each other
        specification.loader.exec_module(images)
        self.decode_image = images.decode_image
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self.height, self.width = sizes["height"], sizes["width"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(sizes["max_length"])
        self.tokenizer.enable_padding(length=sizes["max_length"])
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="decode")

    def decode(self, images: Sequence[bytes]) -> np.ndarray:
        """pixel_values [B, H, W, 3] uint8."""
        each = map if len(images) == 1 else self.pool.map
        return np.stack(list(each(lambda data: self.decode_image(data, self.height, self.width), images)))

    def tokenize(self, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, [B, L] int64 each."""
        encodings = self.tokenizer.encode_batch_fast([title.translate(CONTROL_TO_SPACE).strip() for title in titles])
        return (
            np.array([encoding.ids for encoding in encodings], np.int64),
            np.array([encoding.attention_mask for encoding in encodings], np.int64),
        )


class Pipeline:
    """All of `categorize` on an exported repository.

    Args:
        repository: from `shelfwise export`.
        threads: of the session; 0 leaves ONNX Runtime's default, one a core.
        spinning: whether threads that wait burn their core, ONNX Runtime's default. Good alone, bad in company.
    """

    def __init__(self, repository: Path, threads: int = 0, *, spinning: bool = True) -> None:
        self.preprocessing = Preprocessing(repository)
        self.categorizer = session(repository, "categorizer", threads, spinning)

    def __call__(self, images: Sequence[bytes], titles: Sequence[str]) -> Answers:
        input_ids, attention_mask = self.preprocessing.tokenize(titles)
        return self.infer(self.preprocessing.decode(images), input_ids, attention_mask)

    def infer(self, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray) -> Answers:
        """The part that the ONNX file does; arguments as `Preprocessing` returns them."""
        present = np.ones((len(pixel_values), 1), np.bool_)
        outputs = self.categorizer.run(
            ["category", "category_id", "probability", "neighbour_kl"],
            {
                "pixel_values": pixel_values,
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "image_present": present,
                "text_present": present,
            },
        )
        return Answers(*outputs)


def newest(repository: Path, model: str) -> Path:
    """The folder of a model's newest version."""
    return max((repository / model).glob("[0-9]*"), key=lambda path: int(path.name))


def session(repository: Path, model: str, threads: int, spinning: bool) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a served model on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    path = newest(repository, model) / "model.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
