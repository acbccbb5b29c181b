"""The colour matcher in every form that an export can give it: size, and accuracy on held-out products.

Forms are those of `benchmarks.export.forms`, lowered under the gate on products of the feed, as `--feed` does it;
accuracy is the share of photos and of whole products right among the feed's test products, each asked with its own
labels. SHELFWISE_COLOUR_BUNDLE and SHELFWISE_COLOUR_FEED name a bundle and the feed it was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor

from benchmarks.export.forms import PACKAGES, lowered_forms
from benchmarks.markdown import Rows, markdown
from benchmarks.results import write
from catalogue.colour_groups import ColourProduct, colour_products
from catalogue.feed import detect_preset, open_feed
from export.chain import Chain
from export.match_colours import colour_graph, colour_matcher_system, real_inputs
from export.onnx_graphs import file_bytes
from export.parity import run_torch
from export.system import ExportTarget
from training.colour_metrics import colour_report
from training.match_colours import COLOUR_MATCHER

VARIABLES = ("SHELFWISE_COLOUR_BUNDLE", "SHELFWISE_COLOUR_FEED")


def main(quick: bool, output: Path) -> None:
    """Measure, print a line a form, write export_match_colours.json."""
    bundle_folder, feed_file = (os.environ.get(name) for name in VARIABLES)
    if not bundle_folder or not feed_file:
        print(f"match_colours: not measured; set {' and '.join(VARIABLES)}", flush=True)
        return
    bundle = COLOUR_MATCHER.load(Path(bundle_folder))
    feed = open_feed(Path(feed_file), detect_preset(Path(feed_file)))
    system = colour_matcher_system(bundle, Path(bundle_folder), ExportTarget(), feed)
    graph = colour_graph(bundle)
    chain = Chain([graph], system.inputs)
    products = colour_products(feed, "test", 100 if quick else None)
    asked = [real_inputs(bundle, [(product.images, product.labels)]) for product in products]
    expected = _own(products, (run_torch(graph, one)["probability"][0] for one in asked))
    rows = [_row("PyTorch float32", products, expected)]
    with lowered_forms(graph, chain, Chain([graph], system.calibration).inputs(graph), quick=quick) as forms:
        for form, lowered, file in forms:
            found = _own(products, _answers(lowered.runnable, asked, exact=form.exact))
            row = _row(form.name, products, found)
            same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(expected, found, strict=True)])
            row |= {"agreement": round(float(same.mean()), 5), "kept_in_float32": lowered.kept}
            row["bytes"] = file_bytes(file)
            rows.append(row)
            print({name: value for name, value in row.items() if name != "sinkhorn"}, flush=True)
            path = write("export_match_colours", rows, PACKAGES, output)  # some forms take minutes
    print("Wrote", path)


def _answers(path: Path, asked: Sequence[Mapping[str, Tensor]], *, exact: bool) -> list[np.ndarray]:
    """Probabilities of every product in the graph's room, [n', m'] with n' ≥ n and m' ≥ m."""
    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {name: tensor.numpy() for name, tensor in one.items()})[0][0] for one in asked]


def _own(products: Sequence[ColourProduct], answers: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Of each answer the part [n, m] that is about the product."""
    return [
        answer[: len(product.images), : len(product.labels)] for product, answer in zip(products, answers, strict=True)
    ]


def _row(variant: str, products: Sequence[ColourProduct], answers: Sequence[np.ndarray]) -> dict[str, Any]:
    truths = (np.array(product.answers) for product in products)
    report = colour_report(zip(answers, truths, strict=True))
    return {"graph": "colour_matcher", "variant": variant, **asdict(report)}


def forms_table(rows: Rows) -> str:
    """The README's table of forms."""
    lines = []
    for row in rows:
        lines.append(
            [
                row["variant"],
                f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else None,
                len(row["kept_in_float32"]) if "kept_in_float32" in row else None,
                *(f"{row[how]['images']:.4f} / {row[how]['products']:.4f}" for how in ("arg_max", "one_to_one")),
                f"{100 * row['agreement']:.2f} %" if "agreement" in row else None,
            ]
        )
    columns = ["graph as", "MB", "nodes kept in float32", "arg-max", "one-to-one", "same arg-max"]
    first = rows[0]
    right = f"Photos / whole products right, of {first['images']:,} and {first['products']:,}."
    return f"{markdown(columns, lines)}\n\n{right}"
