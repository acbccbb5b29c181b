"""A categorizer's bundle as a new version of the ensemble `categorize`: graphs, gate, files, release."""

from __future__ import annotations

import base64
import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import catalogue.images
from catalogue.atomic import atomic_file
from catalogue.images import decode_image
from catalogue.product import PATH_SEPARATOR, Product
from models.tokenizer import encode
from training.bundle import CategorizerBundle, load_bundle

from .onnx_graphs import EXAMPLE_ROWS, GraphSpec, ServedCategoryHead, export_onnx
from .parity import OutputParity, check_parity, run_torch
from .repository import SOURCE, stage_version

ENSEMBLE = "categorize"


@dataclass(frozen=True)
class ExportReport:
    """What an export published: the version, and how each graph compares with PyTorch on `rows` real inputs."""

    repository: Path
    version: int
    parity: dict[str, list[OutputParity]]
    bytes: dict[str, int]


def export_categorizer(
    bundle_folder: Path, repository: Path = SOURCE, *, progress: Callable[[str], None] = lambda _: None
) -> ExportReport:
    """Exports a bundle as the next version of `categorize`.

    Args:
        bundle_folder: from `shelfwise train categorize`.
        repository: the model repository to publish to; created when missing.
        progress: told what is being done.

    Raises:
        training.bundle.BundleError: the bundle cannot be used.
        export.onnx_graphs.ExportError: a graph cannot be exported.
        export.parity.ParityError: a graph answers differently; nothing is published and the old version stays.
    """
    bundle = load_bundle(bundle_folder)
    inputs = real_inputs(bundle, bundle.samples)
    parity: dict[str, list[OutputParity]] = {}
    sizes: dict[str, int] = {}
    with stage_version(repository, ENSEMBLE) as staged:
        for graph in categorizer_graphs(bundle):
            progress(f"{graph.name}: PyTorch → ONNX")
            path = staged.path(graph.name) / "model.onnx"
            graph_inputs = {name: inputs[name] for name in graph.inputs}
            export_onnx(graph, path)
            parity[graph.name] = check_parity(graph, path, graph_inputs)
            sizes[graph.name] = path.stat().st_size
            # The head's inputs are the encoders' outputs.
            inputs |= {name: torch.from_numpy(array) for name, array in run_torch(graph, graph_inputs).items()}
            report = {"parity": [asdict(output) for output in parity[graph.name]], "bytes": sizes[graph.name]}
            (path.parent / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        progress("decode_image, tokenize, category_labels: files")
        _write_python_models(bundle, bundle_folder, staged.path)
        staged.publish(
            {
                "ensemble": ENSEMBLE,
                "version": staged.version,
                "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "trained_on": bundle.config.training.get("feed"),
                "classes": len(bundle.taxonomy.paths),
                "recipe": bundle.config.metrics.get("served"),
            }
        )
    with atomic_file(repository / ENSEMBLE / "readiness.json") as aside:
        aside.write_text(json.dumps(readiness_requests(bundle.samples[0]), indent=2))
    return ExportReport(repository, staged.version, parity, sizes)


def categorizer_graphs(bundle: CategorizerBundle) -> list[GraphSpec]:
    """The three ONNX models of a categorizer, in the order in which they depend on each other."""
    config = bundle.config
    tokens = torch.ones(EXAMPLE_ROWS, config.text_encoder.max_length, dtype=torch.int64)
    embeds = torch.zeros(EXAMPLE_ROWS, config.head.embed_dim)
    present = torch.ones(EXAMPLE_ROWS, 1, dtype=torch.bool)
    pixels = torch.zeros(EXAMPLE_ROWS, config.image_encoder.height, config.image_encoder.width, 3, dtype=torch.uint8)
    return [
        GraphSpec("image_encoder", bundle.model.image_encoder, {"pixel_values": pixels}, ["image_embeds"]),
        GraphSpec(
            "text_encoder",
            bundle.model.text_encoder,
            {"input_ids": tokens, "attention_mask": tokens.clone()},
            ["text_embeds"],
        ),
        GraphSpec(
            "category_head",
            ServedCategoryHead(bundle.model.head, bundle.neighbours, config.top_k),
            {
                "image_embeds": embeds,
                "text_embeds": embeds.clone(),
                "image_present": present,
                "text_present": present.clone(),
            },
            ["category_id", "probability", "neighbour_kl", "class_probability"],
        ),
    ]


def real_inputs(bundle: CategorizerBundle, products: Sequence[Product]) -> dict[str, Tensor]:
    """Products as the encoders see them, each in all the `ways_to_ask`, M in all.

    Returns:
        pixel_values [M, H, W, 3] uint8, input_ids and attention_mask [M, L] int64, image_present and text_present
        [M, 1] bool.
    """
    height, width = bundle.config.image_encoder.height, bundle.config.image_encoder.width
    asked = [way for product in products for way in ways_to_ask(product)]
    white = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels = np.stack([decode_image(image, height, width) if image else white for image, _ in asked])
    input_ids, attention_mask = encode(bundle.tokenizer, [title for _, title in asked])
    return {
        "pixel_values": torch.from_numpy(pixels),
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "image_present": torch.tensor([[bool(image)] for image, _ in asked]),
        "text_present": torch.tensor([[bool(title)] for _, title in asked]),
    }


def ways_to_ask(product: Product) -> list[tuple[bytes, str]]:
    """A product's image and title together, the image alone and the title alone; what it lacks is left empty."""
    image, title = (product.images[0] if product.images else b""), product.title
    return [way for way in dict.fromkeys([(image, title), (image, ""), (b"", title)]) if any(way)]


def readiness_requests(product: Product) -> list[dict[str, str]]:
    """Requests that a ready server must answer: a real product in all the `ways_to_ask`."""
    return [{"image": base64.b64encode(image).decode(), "title": title} for image, title in ways_to_ask(product)]


def _write_python_models(bundle: CategorizerBundle, bundle_folder: Path, path: Callable[[str], Path]) -> None:
    encoder = bundle.config.image_encoder
    shutil.copyfile(catalogue.images.__file__, path("decode_image") / "images.py")
    size = {"height": encoder.height, "width": encoder.width}
    (path("decode_image") / "preprocessing.json").write_text(json.dumps(size) + "\n")
    shutil.copyfile(bundle_folder / "tokenizer.json", path("tokenize") / "tokenizer.json")
    length = {"max_length": bundle.config.text_encoder.max_length}
    (path("tokenize") / "preprocessing.json").write_text(json.dumps(length) + "\n")
    labels = "".join(f"{PATH_SEPARATOR.join(label)}\n" for label in bundle.taxonomy.paths)
    for model in ("category_labels", ENSEMBLE):
        (path(model) / "labels.txt").write_text(labels, encoding="utf-8")
