"""A categorizer's bundle as the ensemble `categorize`: graphs, gate, files, release."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import catalogue.images
from catalogue.feed import Feed, FeedError
from catalogue.images import decode_image, is_readable
from catalogue.product import PATH_SEPARATOR, Product
from catalogue.taxonomy import Taxonomy
from models.tokenizer import encode
from training.categorize import CategorizerBundle, CategorizeRecipe, CategorizeSettings

from .onnx_graphs import EXAMPLE_ROWS, GraphSpec, Names, ServedCategoryHead, ServedEncoders
from .precision import Runtime
from .system import ExportTarget, ServedSystem, copy_module
from .systems import System

ENSEMBLE = "categorize"
CALIBRATION_PRODUCTS = 256
PARITY_PRODUCTS = 1000  # asked in three ways each: 99.9 % is three changed answers


def categorizer_system(
    bundle: CategorizerBundle, bundle_folder: Path, target: ExportTarget, feed: Feed | None = None
) -> ServedSystem:
    """What there is to export of a categorizer for a target; arguments as in `export.bundles.export_bundle`."""
    inputs = calibration = [real_inputs(bundle, bundle.samples)]
    if feed is not None:
        calibration = [real_inputs(bundle, whole_products(feed, "train", CALIBRATION_PRODUCTS))]
        inputs = [*inputs, real_inputs(bundle, whole_products(feed, "val", PARITY_PRODUCTS))]
    return ServedSystem(
        ensembles={ENSEMBLE: readiness_requests(bundle.samples[0])},
        graphs=categorizer_graphs(bundle, trim=target.runtime is not Runtime.TENSORRT),
        fused="categorizer",
        single="product_categorizer",
        inputs=inputs,
        calibration=calibration,
        write_files=lambda path: _write_files(bundle, bundle_folder, path),
        release={
            "trained_on": bundle.config.training.get("feed"),
            "classes": len(taxonomy_of(bundle).paths),
            "recipe": bundle.config.metrics.get("served"),
        },
    )


def whole_products(feed: Feed, split: str, limit: int | None = None) -> list[Product]:
    """The first products of a split that have an image and a title; those with an image that cannot be read are not.

    Args:
        feed: its "train" calibrates, its "val" is compared; "test" stays for measuring what was published.
        split: which of them.
        limit: how many at most.

    Raises:
        catalogue.feed.FeedError: there is none.
    """
    whole = (
        product
        for product in feed
        if product.split == split and product.images and product.title and is_readable(product.images[0])
    )
    products = list(islice(whole, limit))
    if not products:
        raise FeedError(f"{feed.path} has no product with image and title in its split {split!r}")
    return products


def categorizer_graphs(bundle: CategorizerBundle, *, trim: bool = True) -> list[GraphSpec]:
    """The two ONNX models of a categorizer, in the order in which they depend on each other; trim: `ServedEncoders`."""
    config = bundle.config
    tokens = torch.ones(EXAMPLE_ROWS, config.text_encoder.max_length, dtype=torch.int64)
    embeds = torch.zeros(EXAMPLE_ROWS, config.head.embed_dim)
    present = torch.ones(EXAMPLE_ROWS, 1, dtype=torch.bool)
    pixels = torch.zeros(EXAMPLE_ROWS, config.image_encoder.height, config.image_encoder.width, 3, dtype=torch.uint8)
    return [
        GraphSpec(
            "product_encoder",
            ServedEncoders(bundle.model.image_encoder, bundle.model.text_encoder, trim=trim),
            {"pixel_values": pixels, "input_ids": tokens, "attention_mask": tokens.clone()},
            ["image_embeds", "text_embeds"],
        ),
        GraphSpec(
            "category_head",
            ServedCategoryHead(bundle.model.head, bundle.extras["neighbours.safetensors"], config.top_k),
            {
                "image_embeds": embeds,
                "text_embeds": embeds.clone(),
                "image_present": present,
                "text_present": present.clone(),
            },
            ["category_id", "probability", "neighbour_kl", "class_probability", "sure_from"],
            float32_only=True,  # a few small matrices, and it decides between close categories
            names=Names("category", "category_id", category_names(bundle)),
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


def taxonomy_of(bundle: CategorizerBundle) -> Taxonomy:
    """The categories of a bundle."""
    return cast(Taxonomy, bundle.extras["labels.txt"])


def category_names(bundle: CategorizerBundle) -> list[str]:
    """The full path of every category, "Apparel > Topwear > Tshirts", by id."""
    return [PATH_SEPARATOR.join(path) for path in taxonomy_of(bundle).paths]


def _write_files(bundle: CategorizerBundle, bundle_folder: Path, path: Callable[[str], Path]) -> None:
    """What prepare_product reads, and the names of the classes for Triton's classification extension."""
    folder = path("prepare_product")
    copy_module(catalogue.images, folder)
    shutil.copyfile(bundle_folder / "tokenizer.json", folder / "tokenizer.json")
    encoder, max_length = bundle.config.image_encoder, bundle.config.text_encoder.max_length
    sizes = {"height": encoder.height, "width": encoder.width, "max_length": max_length}
    (folder / "preprocessing.json").write_text(json.dumps(sizes) + "\n")
    labels = "".join(f"{name}\n" for name in category_names(bundle))
    (path(ENSEMBLE).parent / "labels.txt").write_text(labels, encoding="utf-8")


def report_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a bundle, a line a recipe and way to ask."""
    return [
        f"{recipe + (' (served)' if recipe == metrics['served'] else ''):20} {asked:22} top-1 {report['top_1']:.4f}  "
        f"top-5 {report['top_5']:.4f}  near in top-5 {report['near_in_top_5']:.2f}  "
        f"ECE {report['calibration_error']:.3f}  sure {report['sure']['share']:.1%}"
        for recipe, reports in metrics.items()
        if isinstance(reports, dict)
        for asked, report in reports.items()
    ]


CATEGORIZE = System(
    "categorize",
    CategorizeSettings,
    CategorizeRecipe,
    served=categorizer_system,
    report=report_lines,
    demo="benchmarks.demos.categorize:demonstrate",
)
