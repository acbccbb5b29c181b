"""Small real ONNX graphs and model repositories, written by hand, that a real Triton loads in tests.

`write_categorize_repository` is the whole of `categorize` with graphs of a few nodes in the place of trained networks:
same names, types and shapes as an exported bundle, no training. What an answer must be can be computed from its files.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordPieceTrainer

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


def install(repository: Path, name: str) -> Path:
    """Copy a model's files out of the project's model_repository, as the export does. Returns its version folder."""
    source, target = ROOT / "model_repository" / name, repository / name
    (target / "1").mkdir(parents=True)
    shutil.copyfile(source / "config.pbtxt", target / "config.pbtxt")
    if (source / "1" / "model.py").exists():
        shutil.copyfile(source / "1" / "model.py", target / "1" / "model.py")
    return target / "1"


def install_decode_image(repository: Path, height: int, width: int) -> None:
    folder = install(repository, "decode_image")
    shutil.copyfile(ROOT / "catalogue" / "images.py", folder / "images.py")
    (folder / "preprocessing.json").write_text(json.dumps({"height": height, "width": width}))


def install_tokenize(repository: Path, tokenizer: Tokenizer, max_length: int) -> None:
    folder = install(repository, "tokenize")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessing.json").write_text(json.dumps({"max_length": max_length}))


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


HEIGHT, WIDTH, LENGTH, EMBEDDING, CATEGORIES = 32, 24, 12, 16, 30


def write_categorize_repository(repository: Path) -> None:
    """All models of `categorize` with small random networks, and its readiness requests."""
    random = np.random.default_rng(0)
    tokenizer = train_tokenizer()
    install_decode_image(repository, HEIGHT, WIDTH)
    install_tokenize(repository, tokenizer, LENGTH)
    labels = [f"Group {index % 3} > Kind {index % 7} > Category {index}" for index in range(CATEGORIES)]
    (install(repository, "category_labels") / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    install(repository, "categorize")

    def config(name: str) -> str:
        return (ROOT / "model_repository" / name / "config.pbtxt").read_text()

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    save_onnx(
        repository,
        "image_encoder",
        [
            helper.make_node("Cast", ["pixel_values"], ["float_pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float_pixels", "white"], ["scaled"]),
            helper.make_node("Flatten", ["scaled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "projection"], ["image_embeds"]),
        ],
        {"pixel_values": (TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])},
        {"image_embeds": (TensorProto.FLOAT, ["batch", EMBEDDING])},
        weights={"white": np.float32(255.0), "projection": normal(HEIGHT * WIDTH * 3, EMBEDDING) / 40},
        config=config("image_encoder"),
    )
    save_onnx(
        repository,
        "text_encoder",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
            helper.make_node("Mul", ["tokens", "mask_column"], ["attended"]),
            helper.make_node("ReduceMean", ["attended", "sequence"], ["text_embeds"], keepdims=0),
        ],
        {
            "input_ids": (TensorProto.INT64, ["batch", LENGTH]),
            "attention_mask": (TensorProto.INT64, ["batch", LENGTH]),
        },
        {"text_embeds": (TensorProto.FLOAT, ["batch", EMBEDDING])},
        weights={
            "table": normal(tokenizer.get_vocab_size(), EMBEDDING),
            "last": np.array([2], np.int64),
            "sequence": np.array([1], np.int64),
        },
        config=config("text_encoder"),
    )
    save_onnx(
        repository,
        "category_head",
        [
            helper.make_node("Cast", ["image_present"], ["has_image"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["text_present"], ["has_text"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["image_embeds", "has_image"], ["image"]),
            helper.make_node("Mul", ["text_embeds", "has_text"], ["text"]),
            helper.make_node("Concat", ["image", "text"], ["both"], axis=1),
            helper.make_node("MatMul", ["both", "classifier"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("TopK", ["probabilities", "k"], ["probability", "top"], axis=1),
            helper.make_node("Cast", ["top"], ["category_id"], to=TensorProto.INT32),
            helper.make_node("ReduceMax", ["logits", "classes"], ["neighbour_kl"], keepdims=1),
        ],
        {
            "text_embeds": (TensorProto.FLOAT, ["batch", EMBEDDING]),
            "text_present": (TensorProto.BOOL, ["batch", 1]),
            "image_embeds": (TensorProto.FLOAT, ["batch", EMBEDDING]),
            "image_present": (TensorProto.BOOL, ["batch", 1]),
        },
        {
            "category_id": (TensorProto.INT32, ["batch", 20]),
            "probability": (TensorProto.FLOAT, ["batch", 20]),
            "neighbour_kl": (TensorProto.FLOAT, ["batch", 1]),
        },
        weights={
            "classifier": normal(2 * EMBEDDING, CATEGORIES),
            "k": np.array([20], np.int64),
            "classes": np.array([1], np.int64),
        },
        config=config("category_head"),
    )
    requests = [
        {"image": base64.b64encode(draw_image()).decode(), "title": "Puma Men black running shoes"},
        {"image": "", "title": "leather belt"},
        {"image": base64.b64encode(draw_image(colour="red")).decode(), "title": ""},
    ]
    (repository / "categorize" / "readiness.json").write_text(json.dumps(requests))
