"""A colour matcher's bundle as a new version of the ensemble `match_colours`: one graph, gate, files, release.

Both towers and the matcher are one ONNX graph over rectangular batches, products of one shape, with numbers of photos
and labels that vary from request to request; the parity gate runs on real products of several shapes.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import catalogue.colour_labels
import catalogue.images
import models.assignment
from catalogue.colour_labels import clean_labels
from catalogue.images import decode_image
from catalogue.product import Product
from models.colour_matcher import ColourMatcher
from models.tokenizer import encode
from training.colour_bundle import ColourMatcherBundle

from .onnx_graphs import EXAMPLE_ROWS, GraphSpec
from .system import ServedSystem

ENSEMBLE = "match_colours"
READINESS_REQUESTS = 3
# Photos and labels of a product: least, usual, and most (what prepare_colours lets through).
AXIS_RANGES = {"images": (1, 8, 128), "labels": (1, 16, 256)}


class ServedColourMatcher(nn.Module):
    """A colour matcher over products of one shape, with probabilities as its answer."""

    def __init__(self, model: ColourMatcher) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Matches B products of n photos and m labels each.

        Args:
            pixel_values: [B, n, H, W, 3] uint8.
            input_ids, attention_mask: [B, m, L] int64.

        Returns:
            [B, n, m] float32, each photo's row sums to 1.
        """
        image_embeds = self.model.image_tower(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
        label_embeds = self.model.label_tower(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        label_embeds = label_embeds.unflatten(0, input_ids.shape[:2])
        photo_present = torch.ones_like(image_embeds[..., 0], dtype=torch.bool)
        label_present = torch.ones_like(label_embeds[..., 0], dtype=torch.bool)
        return self.model.head.padded(image_embeds, label_embeds, photo_present, label_present).softmax(-1)


def colour_matcher_system(bundle: ColourMatcherBundle, bundle_folder: Path) -> ServedSystem:
    """What there is to export of a colour matcher."""
    asked = [real_inputs(bundle, group, labels) for group in bundle.samples for labels in ways_to_ask(bundle, group)]
    return ServedSystem(
        ensemble=ENSEMBLE,
        graphs=[colour_graph(bundle)],
        inputs=asked,
        calibration=asked,
        write_files=lambda path: _write_python_models(bundle, bundle_folder, path),
        readiness=[readiness_request(product) for product in bundle.samples[:READINESS_REQUESTS]],
        release={
            "trained_on": bundle.config.training.get("feed"),
            "stage": bundle.config.metrics.get("served"),
        },
        axis_ranges=AXIS_RANGES,
    )


def colour_graph(bundle: ColourMatcherBundle) -> GraphSpec:
    """The ONNX model of a colour matcher."""
    images, labels, tower = 3, 5, bundle.config.image_tower
    tokens = torch.ones(EXAMPLE_ROWS, labels, bundle.config.label_tower.max_length, dtype=torch.int64)
    return GraphSpec(
        "colour_matcher",
        ServedColourMatcher(bundle.model),
        {
            "pixel_values": torch.zeros(EXAMPLE_ROWS, images, tower.height, tower.width, 3, dtype=torch.uint8),
            "input_ids": tokens,
            "attention_mask": tokens.clone(),
        },
        ["probability"],
        dynamic_axes={"pixel_values": {1: "images"}, "input_ids": {1: "labels"}, "attention_mask": {1: "labels"}},
        choices=["probability"],
    )


def ways_to_ask(bundle: ColourMatcherBundle, group: Sequence[Product]) -> list[list[str]]:
    """A product's labels: its own, and with all other colours of the bundle as further ones."""
    every = sorted({product.entities["base_colour"] for group in bundle.samples for product in group})
    own = [product.entities["base_colour"] for product in group]
    return [own, [*own, *(colour for colour in every if colour not in own)]]


def real_inputs(bundle: ColourMatcherBundle, group: Sequence[Product], labels: Sequence[str]) -> dict[str, Tensor]:
    """A product with the given labels as the graph takes it: pixel_values [1, n, H, W, 3], token ids [1, m, L]."""
    tower = bundle.config.image_tower
    pixels = np.stack([decode_image(product.images[0], tower.height, tower.width) for product in group])
    input_ids, attention_mask = encode(bundle.tokenizer, clean_labels(labels))
    tensors = {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": attention_mask}
    return {name: torch.from_numpy(array)[None] for name, array in tensors.items()}


def readiness_request(group: Sequence[Product]) -> dict[str, list[str]]:
    """A product as a request that a ready server must answer."""
    return {
        "images": [base64.b64encode(product.images[0]).decode() for product in group],
        "labels": [product.entities["base_colour"] for product in group],
    }


def _write_python_models(bundle: ColourMatcherBundle, bundle_folder: Path, path: Callable[[str], Path]) -> None:
    prepare = path("prepare_colours")
    shutil.copyfile(catalogue.images.__file__, prepare / "images.py")
    shutil.copyfile(catalogue.colour_labels.__file__, prepare / "colour_labels.py")
    shutil.copyfile(bundle_folder / "tokenizer.json", prepare / "tokenizer.json")
    tower = bundle.config.image_tower
    sizes = {"height": tower.height, "width": tower.width, "max_length": bundle.config.label_tower.max_length}
    (prepare / "preprocessing.json").write_text(json.dumps(sizes) + "\n")
    shutil.copyfile(models.assignment.__file__, path("assign_colours") / "assignment.py")
