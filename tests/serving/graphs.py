"""What the serving tests put into model repositories: ONNX graphs of a few nodes, Python models, a tokenizer, images.

All of it is real and loaded by a real Triton; what a model must answer can be computed from these lines. Whole exported
repositories come from the fixtures in tests/conftest.py.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordPieceTrainer

import catalogue.images
from export.system import copy_module

ROOT = Path(__file__).parents[2]
Shape = Sequence[int | str]


def save_onnx(
    repository: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
    *,
    config: str = "",
    weights: dict[str, np.ndarray] | None = None,
    ir_version: int = 10,
    opset: int = 21,
) -> Path:
    """Write one ONNX model into a repository: `inputs` and `outputs` map names to (element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
        [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
        [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    (repository / name / "config.pbtxt").write_text(config)
    return path


def save_python(repository: Path, name: str, source: str, config: str) -> Path:
    """Write one Python model into a repository."""
    path = repository / name / "1" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (repository / name / "config.pbtxt").write_text(config)
    return path


def install(repository: Path, model: str, name: str | None = None) -> Path:
    """Copy a model's files out of the project's model_repository, as the export does, under another name if given.

    Returns its version folder.
    """
    source, target = ROOT / "model_repository" / model, repository / (name or model)
    (target / "1").mkdir(parents=True)
    shutil.copyfile(source / "config.pbtxt", target / "config.pbtxt")
    if (source / "1" / "model.py").exists():
        shutil.copyfile(source / "1" / "model.py", target / "1" / "model.py")
    return target / "1"


def install_prepare_product(
    repository: Path, tokenizer: Tokenizer, height: int, width: int, max_length: int, name: str = "prepare_product"
) -> None:
    folder = install(repository, "prepare_product", name)
    copy_module(catalogue.images, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"height": height, "width": width, "max_length": max_length}
    (folder / "preprocessing.json").write_text(json.dumps(sizes))


def train_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of a few hundred tokens, trained on titles as a catalogue has them."""
    colours = ["black", "white", "navy blue", "red", "green", "grey"]
    things = ["running shoes", "casual shirt", "leather belt", "wrist watch", "track pants", "sunglasses", "handbag"]
    titles = [f"Puma {who} {colour} {thing}" for who in ("Men", "Women") for colour in colours for thing in things]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator(
        titles, WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    )
    return tokenizer


def draw_image(
    format: str = "JPEG", size: tuple[int, int] = (60, 80), colour: str = "navy", **options: object
) -> bytes:
    """An encoded picture of one shape on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((size[0] // 6, size[1] // 6, size[0] - 5, size[1] - 5), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
