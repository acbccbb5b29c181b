"""The categorizer's encoders in every form that an export can give them: latency, throughput, size, parity, accuracy.

One table for each graph: PyTorch eager and compiled, ONNX Runtime on the CPU in float32, int8 (static and dynamic) and
float16, ONNX Runtime on a GPU and TensorRT where they are present, "not measured" where not.  Parity is against PyTorch
float32 on real inputs, in the same run, before anything is timed.  Accuracy is that of the whole chain (encoders in
that form, head in float32) on the test split, when SHELFWISE_FEED names the feed the bundle was trained on.
SHELFWISE_BUNDLE names the bundle; without it a small one is trained on a drawn catalogue first.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.results import NOT_MEASURED, write
from catalogue.feed import detect_preset, open_feed
from catalogue.product import Product
from export.categorize import categorizer_graphs, real_inputs
from export.onnx_graphs import GraphSpec, export_onnx, file_bytes, operator_counts
from export.parity import compare_with_torch, run_onnx, run_torch
from export.precision import Precision, Runtime, lower_graph
from training.bundle import CategorizerBundle, load_bundle

Row = dict[str, Any]
PACKAGES = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "numpy")
BATCHES = (1, 8)
ABSENT = {"torch CUDA", "ORT CUDA fp16", "TensorRT fp16"}
CPU_FORMS = {
    "ORT CPU fp32": Precision.FP32,
    "ORT CPU int8": Precision.INT8,
    "ORT CPU int8-dynamic": Precision.INT8_DYNAMIC,
    "ORT CPU fp16": Precision.FP16,
}


def main(quick: bool, output: Path) -> None:
    """Measure, print the tables, write export_categorize.json."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(_bundle(Path(folder)))
        inputs = real_inputs(bundle, bundle.samples)
        products = _test_products(400 if quick else None)
        rows: list[Row] = []
        files: dict[str, dict[str, Path]] = {name: {} for name in CPU_FORMS}
        *encoders, head = categorizer_graphs(bundle)
        for graph in encoders:
            own = {name: inputs[name] for name in graph.inputs}
            rows += _measure_torch(graph, own, quick)
            exported = Path(folder) / f"{graph.name}.onnx"
            export_onnx(graph, exported)
            for name, precision in CPU_FORMS.items():
                path = Path(shutil.copyfile(exported, exported.with_stem(f"{graph.name}-{precision}")))
                kept = lower_graph(graph, path, precision, Runtime.CPU, [own], [own]).kept
                files[name][graph.name] = path
                rows.append(_measure_file(graph, name, path, own, kept, quick))
            rows += [_row(graph, name, NOT_MEASURED) for name in sorted(ABSENT)]
            print(_table([row for row in rows if row["graph"] == graph.name]), flush=True)
        rows += _accuracies(bundle, encoders, head, files, products)
        print("Wrote", write("export_categorize", rows, PACKAGES, output))


def _measure_torch(graph: GraphSpec, inputs: Mapping[str, Tensor], quick: bool) -> list[Row]:
    """Eager and compiled PyTorch on the CPU."""
    module = graph.module.eval()
    rows = []
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    for name, run in (("torch eager", module), ("torch.compile", torch.compile(module))):
        expected = run_torch(graph, inputs)[graph.outputs[0]]
        try:
            with torch.no_grad():
                found = run(*(tensor[:8] for tensor in inputs.values()))
                np.testing.assert_allclose(found.numpy(), expected[:8], atol=1e-4)
                times = {}
                for batch in BATCHES:
                    arguments = [tensor[:batch] for tensor in inputs.values()]
                    times[batch] = _time(functools.partial(run, *arguments), quick)
        except RuntimeError as error:  # no C++ compiler for torch.compile
            rows.append(_row(graph, name, NOT_MEASURED, why=str(error).splitlines()[0][:120]))
            continue
        rows.append(_row(graph, name, times, bytes=size))
    return rows


def _measure_file(
    graph: GraphSpec, name: str, path: Path, inputs: Mapping[str, Tensor], kept: Sequence[str], quick: bool
) -> Row:
    parity = compare_with_torch(graph, path, inputs)[0]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the served models run
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times = {}
    for batch in BATCHES:
        feed = {key: tensor[:batch].numpy() for key, tensor in inputs.items()}
        times[batch] = _time(functools.partial(session.run, None, feed), quick)
    return _row(
        graph,
        name,
        times,
        bytes=file_bytes(path),
        cosine=parity.cosine,
        difference=parity.difference,
        kept_in_float32=list(kept),
        operators=operator_counts(path),
    )


def _accuracies(
    bundle: CategorizerBundle,
    encoders: Sequence[GraphSpec],
    head: GraphSpec,
    files: Mapping[str, Mapping[str, Path]],
    products: Sequence[Product],
) -> list[Row]:
    """Top-1 of image + title on the test split, encoders in each form, head in PyTorch float32."""
    if not products:
        return [{"graph": "categorize", "variant": name, "top_1": NOT_MEASURED} for name in ("torch eager", *files)]
    number = {tuple(path): index for index, path in enumerate(bundle.taxonomy.paths)}
    known = [product for product in products if product.category in number and product.images and product.title]
    labels = np.array([number[product.category] for product in known])
    correct = dict.fromkeys(("torch eager", *files), 0)
    agree = dict.fromkeys(files, 0)
    cosine = dict.fromkeys(files, 1.0)
    for start in range(0, len(known), 256):
        inputs = {key: tensor[::3] for key, tensor in real_inputs(bundle, known[start : start + 256]).items()}
        answers: dict[str, Tensor] = {}  # of PyTorch, by encoder
        first: dict[str, np.ndarray] = {}
        for name in correct:
            tensors = dict(inputs)
            for graph in encoders:
                own = {key: inputs[key] for key in graph.inputs}
                found = (
                    run_torch(graph, own)
                    if name not in files
                    else run_onnx(files[name][graph.name], own, list(graph.outputs))
                )
                tensors |= {key: torch.from_numpy(array) for key, array in found.items()}
                if name in files:
                    a, b = tensors[graph.outputs[0]], answers[graph.name]
                    cosine[name] = min(cosine[name], float(torch.cosine_similarity(a, b).min()))
                else:
                    answers[graph.name] = tensors[graph.outputs[0]]
            top = run_torch(head, {key: tensors[key] for key in head.inputs})["category_id"][:, 0]
            first[name] = top
            correct[name] += int((top == labels[start : start + 256]).sum())
            if name in files:
                agree[name] += int((top == first["torch eager"]).sum())
    rows: list[Row] = []
    for name, right in correct.items():
        row: Row = {
            "graph": "categorize",
            "variant": name,
            "products": len(known),
            "top_1": round(right / len(known), 4),
        }
        if name in files:
            row |= {"top_1_agreement": round(agree[name] / len(known), 4), "smallest_cosine": round(cosine[name], 6)}
        print(row, flush=True)
        rows.append(row)
    return rows


def _time(call: Callable[[], object], quick: bool) -> dict[str, float]:
    """Milliseconds of one call: median, 20th and 80th percentile."""
    for _ in range(10):
        call()
    samples = []
    for _ in range(60 if quick else 200):
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    median, low, high = np.percentile(samples, [50, 20, 80])
    return {"median_ms": round(median, 3), "p20_ms": round(low, 3), "p80_ms": round(high, 3)}


def _row(graph: GraphSpec, variant: str, times: Any, **more: Any) -> Row:
    row: Row = {"graph": graph.name, "variant": variant}
    for batch in BATCHES:
        measured = times if times == NOT_MEASURED else times[batch]
        row[f"batch_{batch}"] = measured
        row[f"rows_per_s_{batch}"] = (
            NOT_MEASURED if measured == NOT_MEASURED else round(1e3 * batch / measured["median_ms"], 1)
        )
    return row | more


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'graph':<14} {'variant':<22} {'batch 1':>9} {'batch 8':>9} {'rows/s':>8} {'MB':>6} {'cosine':>9}  (ms)"]
    for row in rows:
        head = f"{row['graph']:<14} {row['variant']:<22} "
        if row["batch_1"] == NOT_MEASURED:
            lines.append(head + NOT_MEASURED)
            continue
        cosine = f"{row['cosine']:>9.6f}" if row.get("cosine") is not None else ""
        lines.append(
            f"{head}{row['batch_1']['median_ms']:>9} {row['batch_8']['median_ms']:>9} {row['rows_per_s_8']:>8} "
            f"{row['bytes'] / 1e6:>6.2f} {cosine}"
        )
    return "\n".join(lines)


def _test_products(limit: int | None) -> list[Product]:
    """Held-out products of the feed that SHELFWISE_FEED names, none when it names none."""
    feed = os.environ.get("SHELFWISE_FEED")
    if not feed:
        return []
    return list(islice(open_feed(Path(feed), detect_preset(Path(feed)), splits=["test"]), limit))


def _bundle(folder: Path) -> Path:
    given = os.environ.get("SHELFWISE_BUNDLE")
    if given:
        return Path(given)
    from catalogue.sample import generate_sample
    from training.bundle import save_bundle
    from training.categorize import CategorizeSettings, train_categorizer
    from training.train import TrainConfig, make_accelerator

    print("SHELFWISE_BUNDLE is not set: training a small categorizer on a drawn catalogue", flush=True)
    generate_sample(folder / "sample.parquet", 400, 0)
    one = TrainConfig(epochs=1, batch_size=64)
    settings = CategorizeSettings(contrastive=one, head=one, finetune=one)
    bundle = train_categorizer(open_feed(folder / "sample.parquet"), settings, folder / "run", make_accelerator())
    save_bundle(folder / "bundle", bundle)
    return folder / "bundle"
