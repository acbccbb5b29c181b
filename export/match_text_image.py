"""A text-image matcher's bundle as the ensemble `match_text_image`: graph, gate, files, release."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import catalogue.images
from catalogue.feed import Feed
from catalogue.images import decode_image
from catalogue.product import Product
from models.fashionbert import FashionBert
from models.tokenizer import encode
from repository.configs import SOURCE
from training.match_text_image import MatchBundle, MatchRecipe, MatchSettings

from .categorize import CALIBRATION_PRODUCTS, PARITY_PRODUCTS, whole_products
from .onnx_graphs import EXAMPLE_ROWS, GraphSpec, trimmed
from .precision import Runtime
from .system import ExportTarget, ServedSystem, copy_module
from .systems import System

ENSEMBLE = "match_text_image"
EXAMPLE_TITLES = 3


class ServedMatcher(nn.Module):
    """A FashionBERT that only answers whether all belongs together.

    Args:
        model: the whole.
        trim: whether what no row attends to is cut off; see `ServedEncoders`.
    """

    def __init__(self, model: FashionBert, *, trim: bool = True) -> None:
        super().__init__()
        self.model = model
        self.trim = trim

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, query_ids: Tensor, query_mask: Tensor
    ) -> Tensor:
        """The probabilities of T titles a photo; the photo is read once.

        Args:
            pixel_values: [B, H, W, 3] uint8.
            input_ids, attention_mask: [B, T, L] int64.
            query_ids, query_mask: [B, L] int64; a query may be masked whole.

        Returns:
            [B, T] float32.
        """
        shape = input_ids.shape[:2]
        input_ids, attention_mask = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        if self.trim:
            input_ids, attention_mask = trimmed(input_ids, attention_mask)
            query_ids, query_mask = trimmed(query_ids, query_mask)
        patches = self.model.patches(pixel_values).unsqueeze(1).expand(-1, shape[1], -1, -1).flatten(0, 1)
        query_ids, query_mask = (
            tokens.unsqueeze(1).expand(-1, shape[1], -1).flatten(0, 1) for tokens in (query_ids, query_mask)
        )
        logits = self.model.match(patches, input_ids, attention_mask, query_ids, query_mask)
        return torch.sigmoid(logits.float()).unflatten(0, shape)


def matcher_system(
    bundle: MatchBundle, bundle_folder: Path, target: ExportTarget, feed: Feed | None = None
) -> ServedSystem:
    """What there is to export of a matcher for a target; arguments as in `export.bundles.export_bundle`."""
    samples = [product for product in bundle.samples if product.images and product.title]
    inputs = calibration = [real_inputs(bundle, samples)]
    if feed is not None:
        calibration = [real_inputs(bundle, whole_products(feed, "train", CALIBRATION_PRODUCTS))]
        inputs = [*inputs, real_inputs(bundle, whole_products(feed, "val", PARITY_PRODUCTS))]
    readiness = [
        {"image": base64.b64encode(samples[0].images[0]).decode(), "title": title, "query": query}
        for title, query in ways_to_ask(samples[0])
    ]
    return ServedSystem(
        ensembles={ENSEMBLE: readiness},
        graphs=[matcher_graph(bundle, trim=target.runtime is not Runtime.TENSORRT)],
        axis_ranges={"titles": (1, 1, 128)},  # prepare_match's MOST_TITLES
        inputs=inputs,
        calibration=calibration,
        write_files=lambda path: _write_files(bundle, bundle_folder, path),
        release={
            "trained_on": bundle.config.training.get("feed"),
            "patches": bundle.config.fashionbert.patches.rows * bundle.config.fashionbert.patches.columns,
            "recipe": bundle.config.metrics.get("served"),
        },
    )


def matcher_graph(bundle: MatchBundle, *, trim: bool = True) -> GraphSpec:
    """The ONNX model of a matcher; trim: `ServedMatcher`."""
    config = bundle.config.fashionbert
    tokens = torch.ones(EXAMPLE_ROWS, config.text.max_length, dtype=torch.int64)
    pixels = torch.zeros(EXAMPLE_ROWS, config.patches.height, config.patches.width, 3, dtype=torch.uint8)
    titles = {name: tokens.unsqueeze(1).repeat(1, EXAMPLE_TITLES, 1) for name in ("input_ids", "attention_mask")}
    queries = {name: tokens.clone() for name in ("query_ids", "query_mask")}
    return GraphSpec(
        "text_image_matcher",
        ServedMatcher(bundle.model, trim=trim),
        {"pixel_values": pixels, **titles, **queries},
        ["probability"],
        dynamic_axes={name: {1: "titles"} for name in titles},
    )


def real_inputs(bundle: MatchBundle, products: Sequence[Product]) -> dict[str, Tensor]:
    """Products as the network sees them, each in all the `ways_to_ask`, and with the next one's title; M in all."""
    patches = bundle.config.fashionbert.patches
    others = [*products[1:], *products[:1]]
    asked = [
        (product.images[0], title, query)
        for product, other in zip(products, others, strict=True)
        for title, query in (*ways_to_ask(product), (other.title, ""))
    ]
    pixels = np.stack([decode_image(image, patches.height, patches.width) for image, _, _ in asked])
    input_ids, attention_mask = encode(bundle.tokenizer, [title for _, title, _ in asked])
    query_ids, query_mask = encode(bundle.tokenizer, [query for _, _, query in asked])
    attention_mask[:, 0] = 1
    query_mask[[not query for _, _, query in asked]] = 0
    arrays = {
        "pixel_values": pixels,
        "input_ids": input_ids[:, None],
        "attention_mask": attention_mask[:, None],
        "query_ids": query_ids,
        "query_mask": query_mask,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def ways_to_ask(product: Product) -> list[tuple[str, str]]:
    """Title and query of a product: the title alone, both, the query alone; the query is the end of the title."""
    query = " ".join(product.title.split()[-2:])
    return [(product.title, ""), (product.title, query), ("", query)]


def _write_files(bundle: MatchBundle, bundle_folder: Path, path: Callable[[str], Path]) -> None:
    """What prepare_match reads: prepare_product's model, which it extends, and that one's files."""
    folder = path("prepare_match")
    shutil.copyfile(SOURCE / "prepare_product" / "1" / "model.py", folder / "prepare_product.py")
    copy_module(catalogue.images, folder)
    shutil.copyfile(bundle_folder / "tokenizer.json", folder / "tokenizer.json")
    config = bundle.config.fashionbert
    sizes = {"height": config.patches.height, "width": config.patches.width, "max_length": config.text.max_length}
    (folder / "preprocessing.json").write_text(json.dumps(sizes) + "\n")


def report_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a bundle, a line a way to ask."""
    return [
        f"{asked:16} against others of the category: accuracy {report['accuracy']:.4f}  AUC {report['auc']:.4f}  "
        f"({report['photos']} photos)"
        for asked, report in metrics.get(metrics["served"], {}).items()
    ]


MATCH_TEXT_IMAGE = System(
    "match-text-image",
    MatchSettings,
    MatchRecipe,
    served=matcher_system,
    report=report_lines,
    demo="benchmarks.demos.match_text_image:demonstrate",
)
