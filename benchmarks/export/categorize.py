"""The categorizer's encoders in every form that an export can give them: what is kept, size, parity, accuracy.

A form is what the export would publish: the gate, on the bundle's products and 1,000 of the feed's validation split,
decides what stays in float32.  Accuracy is that of the whole chain on the test split, with image and title, image alone
and title alone, beside how often the first answer is that of PyTorch float32.  `speed` times the same forms.
SHELFWISE_BUNDLE and SHELFWISE_FEED name a bundle and the feed it was trained on; without them a small one is trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.export.forms import PACKAGES, lowered_forms
from benchmarks.markdown import markdown
from benchmarks.results import write
from catalogue.feed import detect_preset, open_feed
from export.categorize import CALIBRATION_PRODUCTS, PARITY_PRODUCTS, categorizer_graphs, real_inputs, whole_products
from export.chain import Chain
from export.onnx_graphs import GraphSpec, file_bytes, operator_counts
from export.parity import run_onnx, run_torch
from training.categorize import CATEGORIZER, CategorizerBundle

Row = dict[str, Any]
WAYS = {"image + title": (True, True), "image": (True, False), "title": (False, True)}


def main(quick: bool, output: Path) -> None:
    """Measure, print the table, write export_categorize.json."""
    with tempfile.TemporaryDirectory() as folder:
        bundle_folder, feed_file = bundle_and_feed(Path(folder))
        bundle, feed = CATEGORIZER.load(bundle_folder), open_feed(feed_file, detect_preset(feed_file))
        encoder, head = categorizer_graphs(bundle)
        compared = whole_products(feed, "val", 200 if quick else PARITY_PRODUCTS)
        chain = Chain([encoder, head], [real_inputs(bundle, bundle.samples), real_inputs(bundle, compared)])
        products = whole_products(feed, "train", CALIBRATION_PRODUCTS)
        calibration = Chain([encoder], [real_inputs(bundle, products)]).inputs(encoder)
        test = _TestSplit(bundle, encoder, head, whole_products(feed, "test", 400 if quick else None))
        rows: list[Row] = [{"variant": "PyTorch float32"} | test.accuracy(test.expected)]
        print(_line(rows[0]), flush=True)
        with lowered_forms(encoder, chain, calibration, quick=quick) as forms:
            for form, lowered, path in forms:
                parity = chain.compare(encoder, lowered.runnable, exact=form.exact)
                found = run_onnx(lowered.runnable, test.inputs, list(encoder.outputs), exact=form.exact)
                row: Row = {"variant": form.name, "kept_in_float32": lowered.kept, "bytes": file_bytes(path)}
                row |= {"operators": operator_counts(path), "gate_rows": parity[0].rows}
                row["gate_agreement"] = next(entry.agreement for entry in parity if entry.agreement is not None)
                rows.append(row | test.accuracy(found))
                print(_line(rows[-1]), flush=True)
        print("Wrote", write("export_categorize", rows, PACKAGES, output))


class _TestSplit:
    """Held-out products as tensors, and what PyTorch float32 answers about them."""

    def __init__(self, bundle: CategorizerBundle, encoder: GraphSpec, head: GraphSpec, products: Sequence[Any]) -> None:
        self.head = head
        number = {tuple(path): index for index, path in enumerate(bundle.extras["labels.txt"].paths)}
        known = [product for product in products if product.category in number]
        self.labels = np.array([number[product.category] for product in known])
        # Every product in three ways; the encoders see only the first, the head is told what is absent.
        parts = [real_inputs(bundle, known[start : start + 256]) for start in range(0, len(known), 256)]
        self.inputs = {name: torch.cat([part[name][::3] for part in parts]) for name in encoder.inputs}
        self.expected = run_torch(encoder, self.inputs)
        self.answers = {way: self._answer(self.expected, way) for way in WAYS}

    def accuracy(self, embeds: Mapping[str, np.ndarray]) -> Row:
        """Top-1, top-5 and agreement by way of asking, and the smallest cosine of each embedding."""
        row: Row = {"products": len(self.labels), "smallest_cosine": {}}
        for name, expected in self.expected.items():
            a, b = torch.from_numpy(expected), torch.from_numpy(embeds[name])
            row["smallest_cosine"][name] = round(float(torch.cosine_similarity(a, b).min()), 6)
        changed = 0
        for way in WAYS:
            answer = self._answer(embeds, way)
            same = answer[:, 0] == self.answers[way][:, 0]
            changed += int((~same).sum())
            row[way] = {
                "top_1": round(float((answer[:, 0] == self.labels).mean()), 5),
                "top_5": round(float((answer[:, :5] == self.labels[:, None]).any(1).mean()), 5),
                "agreement": round(float(same.mean()), 5),
            }
        return row | {"agreement": round(1 - changed / (len(WAYS) * len(self.labels)), 5)}

    def _answer(self, embeds: Mapping[str, np.ndarray], way: str) -> np.ndarray:
        tensors = {name: torch.from_numpy(array) for name, array in embeds.items()}
        for name, there in zip(("image_present", "text_present"), WAYS[way], strict=True):
            tensors[name] = torch.full((len(self.labels), 1), there)
        return run_torch(self.head, tensors)["category_id"]


def _line(row: Row) -> str:
    ways = "  ".join(f"{way} {row[way]['top_1']:.4f} / {row[way]['top_5']:.4f}" for way in WAYS)
    kept = f", {len(row['kept_in_float32'])} nodes in float32" if row.get("kept_in_float32") else ""
    return f"{row['variant']:<26} {ways}  agreement {row['agreement']:.4f}{kept}"


def accuracy_table(rows: Sequence[Row]) -> str:
    """The README's table of forms."""
    lines = [
        [
            row["variant"],
            f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else None,
            len(row["kept_in_float32"]) if "kept_in_float32" in row else None,
            *(f"{row[way]['top_1']:.4f} / {row[way]['top_5']:.4f}" for way in WAYS),
            f"{100 * row['agreement']:.2f} %",
        ]
        for row in rows
    ]
    columns = ["encoders as", "MB", "nodes kept in float32", *WAYS, "same first answer"]
    return f"{markdown(columns, lines)}\n\nTop-1 / top-5 of {rows[0]['products']:,} held-out products."


def bundle_and_feed(folder: Path) -> tuple[Path, Path]:
    """What the environment names, else what is trained in `folder`."""
    bundle_folder, feed_file = (os.environ.get(f"SHELFWISE_{name}") for name in ("BUNDLE", "FEED"))
    if bundle_folder and feed_file:
        return Path(bundle_folder), Path(feed_file)
    from catalogue.sample import generate_sample
    from training.categorize import CategorizeRecipe, CategorizeSettings
    from training.recipe import train
    from training.settings import TrainConfig
    from training.train import make_accelerator

    print("SHELFWISE_BUNDLE and SHELFWISE_FEED are not set: training on a small drawn catalogue", flush=True)
    generate_sample(folder / "sample.parquet", 400, 0)
    one = TrainConfig(epochs=1, batch_size=64)
    settings = CategorizeSettings(contrastive=one, head=one, finetune=one)
    bundle = train(CategorizeRecipe, open_feed(folder / "sample.parquet"), settings, folder / "run", make_accelerator())
    CATEGORIZER.save(folder / "bundle", bundle)
    return folder / "bundle", folder / "sample.parquet"
