"""A colour matcher's bundle as the ensemble `match_colours`: one graph, gate, files, release.

Both towers and the matcher are one ONNX graph over ragged batches: photos and labels of all products one after the
other, as Triton's ragged batching hands them over, and a mask that says how many of them each product has. The towers
see every photo and label once and no padding; only the matcher works on a rectangle, as wide as the largest product.
The parity gate runs on real products: those of the bundle each alone and all in one batch, those of a feed in batches.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

import catalogue.colour_labels
import catalogue.images
import models.assignment
from catalogue.colour_groups import colour_products
from catalogue.colour_labels import clean_labels
from catalogue.feed import Feed, FeedError
from catalogue.images import decode_image
from catalogue.product import Product, Split
from models.colour_matcher import ColourMatcher
from models.tokenizer import encode
from repository.configs import SOURCE, read_config
from training.match_colours import ColourMatcherBundle, ColourRecipe, ColourSettings, sample_groups

from . import fused_colour_matcher
from .fused_colour_matcher import SERVED_MODULES, load_fused, save_fused
from .onnx_graphs import ExportError, GraphSpec, largest, trimmed
from .precision import Precision, Runtime
from .system import ExportTarget, ServedSystem, TorchModel, copy_module
from .systems import System

ENSEMBLE = "match_colours"
READINESS_REQUESTS = 3
EXAMPLE_SIZES = ((2, 3), (4, 7))  # photos and labels of the products that the exporter sees
EXAMPLE_PHOTOS, EXAMPLE_LABELS = (sum(side) for side in zip(*EXAMPLE_SIZES, strict=True))
# Photos and labels that a batch has room for, for each product; the last is all that prepare_colours lets through.
# Triton batches products that take the same room. Few, so that most products meet; more than one, so that a product of
# a hundred photos does not make room for itself in thirty small ones.
ROOMS = ((16, 32), (64, 128), (128, 256))
PRODUCTS = (1, 8, 32)  # of a batch: least, usual, most
USUAL_PHOTOS, USUAL_LABELS = 4, 8
CALIBRATION_PRODUCTS = 128
PARITY_PRODUCTS = 500
Asked = tuple[Sequence[bytes], Sequence[str]]  # image files and labels of a product


class ServedColourMatcher(nn.Module):
    """A colour matcher over ragged batches in Triton's form, with probabilities as its answer.

    Args:
        model: the trained matcher.
        trim: compute on what the largest product and the longest label of the batch need, not on all there is room for.
            Such sizes are known only when a batch is there, which ONNX Runtime takes and TensorRT does not.
    """

    def __init__(self, model: ColourMatcher, *, trim: bool = True) -> None:
        super().__init__()
        self.model = model
        self.trim = trim

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pair_present: Tensor) -> Tensor:
        """Matches B products with N photos and M labels in all.

        Args:
            pixel_values: [N * H * W * 3] uint8, the photos of one product after the other.
            input_ids, attention_mask: [M * L] int64, their labels in the same order.
            pair_present: [B, n, m] bool, true for the photos and labels that a product has, which are its first.

        Returns:
            [B, n, m] float32, narrowed to the largest product when trimmed (no side below 2). The row of a photo that
            is there sums to 1 over the labels that are; all else is 0.
        """
        tower, length = self.model.image_encoder.config, self.model.text_encoder.config.max_length
        if not self.trim:
            pixel_values = pixel_values.to(torch.float32)  # TensorRT reshapes no uint8
        pixel_values = pixel_values.view(-1, tower.height, tower.width, 3)
        input_ids, attention_mask = input_ids.view(-1, length), attention_mask.view(-1, length)
        if self.trim:
            input_ids, attention_mask = trimmed(input_ids, attention_mask)
        photos, photo_present = self.by_product(self.model.image_encoder(pixel_values), pair_present.any(2))
        labels, label_present = self.by_product(self.model.text_encoder(input_ids, attention_mask), pair_present.any(1))
        logits = self.model.head.padded(photos, labels, photo_present, label_present)
        return logits.softmax(-1) * photo_present[:, :, None]

    def by_product(self, embeds: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] one product after the other, which are there [B, n] bool -> [B, n', D] and [B, n'] bool."""
        count = present.sum(1)
        room = largest(count, present.shape[1]) if self.trim else present.shape[1]
        place = torch.arange(room)
        there = place < count[:, None]
        return embeds[torch.where(there, (count.cumsum(0) - count)[:, None] + place, 0)], there


def colour_matcher_system(
    bundle: ColourMatcherBundle, bundle_folder: Path, target: ExportTarget, feed: Feed | None = None
) -> ServedSystem:
    """What there is to export of a colour matcher for a target; arguments as in `export.bundles.export_bundle`.

    Raises:
        ExportError: a GPU is to run it, and the fused matcher does not have this one.
    """
    system = _colour_matcher_graph(bundle, bundle_folder, target, feed)
    return _on_the_fused_matcher(system, bundle) if target.runtime is Runtime.GPU else system


def _colour_matcher_graph(
    bundle: ColourMatcherBundle, bundle_folder: Path, target: ExportTarget, feed: Feed | None
) -> ServedSystem:
    groups = sample_groups(bundle.samples)
    products = [(photos_of(group), labels) for group in groups for labels in ways_to_ask(bundle, group)]
    inputs = [real_inputs(bundle, batch) for batch in [*([product] for product in products), *full_batches(products)]]
    calibration = inputs
    if feed is not None:
        train, val = products_of(feed, "train", CALIBRATION_PRODUCTS), products_of(feed, "val", PARITY_PRODUCTS)
        calibration = [real_inputs(bundle, batch) for batch in full_batches(train)]
        inputs = [*inputs, *(real_inputs(bundle, batch) for batch in full_batches(val))]
    graph = colour_graph(bundle, trim=target.runtime is not Runtime.TENSORRT)
    pixels, tokens = (graph.inputs[name] for name in ("pixel_values", "input_ids"))
    return ServedSystem(
        ensembles={ENSEMBLE: [readiness_request(product) for product in groups[:READINESS_REQUESTS]]},
        graphs=[graph],
        inputs=inputs,
        calibration=calibration,
        write_files=lambda path: _write_python_models(bundle, bundle_folder, path),
        release={
            "trained_on": bundle.config.training.get("feed"),
            "stage": bundle.config.metrics.get("served"),
        },
        axis_ranges={
            "pixels": _totals(len(pixels) // EXAMPLE_PHOTOS, USUAL_PHOTOS, ROOMS[-1][0]),
            "tokens": _totals(len(tokens) // EXAMPLE_LABELS, USUAL_LABELS, ROOMS[-1][1]),
            "photos": (ROOMS[0][0], ROOMS[0][0], ROOMS[-1][0]),
            "labels": (ROOMS[0][1], ROOMS[0][1], ROOMS[-1][1]),
        },
    )


def _on_the_fused_matcher(system: ServedSystem, bundle: ColourMatcherBundle) -> ServedSystem:
    """A system whose matcher is a Python model with the graph's inputs and outputs."""
    [graph] = system.graphs
    try:
        bundle.model.head.matcher.packed_weights()
    except ValueError as error:
        raise ExportError(f"colour_matcher: the fused matcher cannot serve it: {error}") from error
    config = read_config(graph.name)
    for tensor in config.input:
        tensor.allow_ragged_batch = True  # requests come one by one: no need to agree in the mask either
    config.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    return replace(
        system,
        graphs=[],
        torch_models=[
            TorchModel(graph, lambda folder, precision: _write_fused(bundle, folder, precision), _run_fused, config)
        ],
        precisions=(Precision.BF16, Precision.FP32),  # of the kernel's matrices
    )


def _write_fused(bundle: ColourMatcherBundle, folder: Path, precision: Precision) -> None:
    """model.py, the modules that it imports, and the network."""
    shutil.copyfile(SOURCE / "colour_matcher" / "fused_model.py", folder / "model.py")
    shutil.copyfile(fused_colour_matcher.__file__, folder / Path(fused_colour_matcher.__file__).name)
    for package, modules in SERVED_MODULES.items():
        (folder / package).mkdir()
        for module in modules:
            shutil.copyfile(SOURCE.parent / package / f"{module}.py", folder / package / f"{module}.py")
    save_fused(folder, bundle.model, {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}[precision])


def _run_fused(folder: Path, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The answers of a written fused matcher on the CPU to a batch in the graph's form, in the graph's room."""
    fused = load_fused(folder, torch.device("cpu"))
    tower, length = fused.model.image_encoder.config, fused.model.text_encoder.config.max_length
    present = inputs["pair_present"]
    sizes = [(int(product[:, 0].sum()), int(product[0].sum())) for product in present]
    answers = fused(
        inputs["pixel_values"].view(-1, tower.height, tower.width, 3),
        inputs["input_ids"].view(-1, length),
        inputs["attention_mask"].view(-1, length),
        sizes,
    )
    room = [max(2, *side) for side in zip(*sizes, strict=True)]
    probability = np.zeros((len(sizes), *room), np.float32)
    for product, answer, (n, m) in zip(probability, answers, sizes, strict=True):
        product[:n, :m] = answer
    return {"probability": probability}


def colour_graph(bundle: ColourMatcherBundle, *, trim: bool = True) -> GraphSpec:
    """The ONNX model of a colour matcher; `trim` as in `ServedColourMatcher`."""
    tower = bundle.config.image_encoder
    tokens = torch.ones(EXAMPLE_LABELS * bundle.config.text_encoder.max_length, dtype=torch.int64)
    return GraphSpec(
        "colour_matcher",
        ServedColourMatcher(bundle.model, trim=trim),
        {
            "pixel_values": torch.zeros(EXAMPLE_PHOTOS * tower.height * tower.width * 3, dtype=torch.uint8),
            "input_ids": tokens,
            "attention_mask": tokens.clone(),
            "pair_present": pair_present(EXAMPLE_SIZES),
        },
        ["probability"],
        dynamic_axes={
            "pixel_values": {0: "pixels"},
            "input_ids": {0: "tokens"},
            "attention_mask": {0: "tokens"},
            "pair_present": {1: "photos", 2: "labels"},
        },
        choices=["probability"],
    )


def pair_present(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """The mask [B, n, m] of products of the given numbers of photos and labels, in the room that they need."""
    photos, labels = (max(side) for side in zip(*sizes, strict=True))
    room = next(room for room in ROOMS if photos <= room[0] and labels <= room[1])
    present = torch.zeros(len(sizes), *room, dtype=torch.bool)
    for product, (n, m) in zip(present, sizes, strict=True):
        product[:n, :m] = True
    return present


def ways_to_ask(bundle: ColourMatcherBundle, group: Sequence[Product]) -> list[list[str]]:
    """A product's labels: its own, and with all other colours of the bundle as further ones."""
    every = sorted({product.entities["base_colour"] for product in bundle.samples})
    own = [product.entities["base_colour"] for product in group]
    return [own, [*own, *(colour for colour in every if colour not in own)]]


def photos_of(group: Sequence[Product]) -> list[bytes]:
    """The photos of a product that comes as one feed product a colour."""
    return [product.images[0] for product in group]


def products_of(feed: Feed, split: Split, limit: int) -> list[Asked]:
    """Products of a feed with their own labels.

    Raises:
        catalogue.feed.FeedError: there is none in that split.
    """
    found = colour_products(feed, split, limit)
    if not found:
        raise FeedError(f"{feed.path} has no product in two colours in split {split!r}: see catalogue.colour_groups")
    return [(product.images, product.labels) for product in found]


def full_batches(asked: Sequence[Asked]) -> list[Sequence[Asked]]:
    """Products in batches as large as served ones get."""
    return [asked[start : start + PRODUCTS[-1]] for start in range(0, len(asked), PRODUCTS[-1])]


def real_inputs(bundle: ColourMatcherBundle, asked: Sequence[Asked]) -> dict[str, Tensor]:
    """Products, each with its image files and labels, in one batch as the graph takes it."""
    tower = bundle.config.image_encoder
    files = [photo for photos, _ in asked for photo in photos]
    pixels = np.stack([decode_image(file, tower.height, tower.width) for file in files])
    tokens = encode(bundle.tokenizer, [label for _, labels in asked for label in clean_labels(labels)])
    flat = dict(zip(("pixel_values", "input_ids", "attention_mask"), (pixels, *tokens), strict=True))
    tensors = {name: torch.from_numpy(array).flatten() for name, array in flat.items()}
    return tensors | {"pair_present": pair_present([(len(photos), len(labels)) for photos, labels in asked])}


def readiness_request(group: Sequence[Product]) -> dict[str, list[str]]:
    """A product as a request that a ready server must answer."""
    return {
        "images": [base64.b64encode(product.images[0]).decode() for product in group],
        "labels": [product.entities["base_colour"] for product in group],
    }


def _totals(elements: int, usual: int, most: int) -> tuple[int, int, int]:
    """Least, usual and largest length of a ragged input, of which a photo or label has so many elements."""
    return elements, PRODUCTS[1] * usual * elements, PRODUCTS[2] * most * elements


def _write_python_models(bundle: ColourMatcherBundle, bundle_folder: Path, path: Callable[[str], Path]) -> None:
    prepare = path("prepare_colours")
    copy_module(catalogue.images, prepare)
    copy_module(catalogue.colour_labels, prepare)
    shutil.copyfile(bundle_folder / "tokenizer.json", prepare / "tokenizer.json")
    tower = bundle.config.image_encoder
    sizes = {
        "height": tower.height,
        "width": tower.width,
        "max_length": bundle.config.text_encoder.max_length,
        "rooms": ROOMS,
    }
    (prepare / "preprocessing.json").write_text(json.dumps(sizes) + "\n")
    copy_module(models.assignment, path("assign_colours"))


def report_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a bundle, a line a stage and kind of product."""
    lines = [f"{'share of photos / of whole products right':44} {'arg-max':17} {'one-to-one':17}"]
    for stage, reports in metrics.items():
        if isinstance(reports, dict):
            served = " (served)" if stage == metrics["served"] else ""
            for kind, report in reports.items():
                figures = [
                    f"{report[d]['images']:.4f} / {report[d]['products']:.4f}" for d in ("arg_max", "one_to_one")
                ]
                lines.append(
                    f"{stage + served:16} {kind:27} {figures[0]:17} {figures[1]:17} ({report['products']} products)"
                )
    return lines


MATCH_COLOURS = System(
    "match-colours",
    ColourSettings,
    ColourRecipe,
    served=colour_matcher_system,
    report=report_lines,
    demo="benchmarks.demos.match_colours:demonstrate",
)
