"""How fast the categorizer's encoders are in the forms that run here, of `benchmarks.export.categorize`.

PyTorch eager and compiled, ONNX Runtime on the CPU; forms for a GPU say "not measured" where there is none.  Which
nodes stay in float32 is read from that suite's results, so that this one takes a minute of a quiet machine.  The forms
take turns in rounds, so that a disturbance meets all of them.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.export.categorize import bundle_and_feed
from benchmarks.export.forms import FORMS, PACKAGES, Form
from benchmarks.markdown import markdown
from benchmarks.results import NOT_MEASURED, RESULTS, read, write
from catalogue.feed import detect_preset, open_feed
from export.categorize import CALIBRATION_PRODUCTS, categorizer_graphs, real_inputs, whole_products
from export.float_types import FLOAT16, lower_floats
from export.onnx_graphs import export_onnx, save_onnx
from export.precision import Precision, quantization_method
from export.quantization import Quantizer
from training.categorize import CATEGORIZER

Row = dict[str, Any]
Call = Callable[[], object]
BATCHES = (1, 8)
ABSENT = ("torch CUDA", "ONNX Runtime CUDA fp16", "TensorRT fp16")
ROUNDS, CALLS = 10, 20


def main(quick: bool, output: Path) -> None:
    """Measure, print a line a form, write export_speed.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle_folder, feed_file = bundle_and_feed(folder)
        bundle, feed = CATEGORIZER.load(bundle_folder), open_feed(feed_file, detect_preset(feed_file))
        encoder = categorizer_graphs(bundle)[0]
        products = real_inputs(bundle, whole_products(feed, "train", CALIBRATION_PRODUCTS))
        inputs = {name: products[name] for name in encoder.inputs}
        exported = folder / "exported.onnx"
        export_onnx(encoder, exported)
        module = encoder.module.eval()
        eager: dict[str, Callable[..., object]] = {"torch eager": module}
        if not quick:  # compiles for half a minute
            eager["torch.compile"] = torch.compile(module)
        calls: dict[tuple[str, int], Call] = {}
        for batch in BATCHES:
            few = {name: tensor[:batch] for name, tensor in inputs.items()}
            for label, run in eager.items():
                calls[label, batch] = functools.partial(run, *few.values())
            for form in FORMS:
                if not form.exact:
                    path = _lowered(form, exported, folder, [inputs])
                    calls[form.name, batch] = _onnx_call(path, {name: tensor.numpy() for name, tensor in few.items()})
        with torch.no_grad():
            times = _times(calls, 3 if quick else ROUNDS)
    rows: list[Row] = []
    for label in dict.fromkeys(label for label, _ in calls):
        row: Row = {"variant": label} | {f"batch_{batch}": times[label, batch] for batch in BATCHES}
        rows.append(row | {"rows_per_s_8": round(8e3 / times[label, 8]["median_ms"], 1)})
        print(rows[-1], flush=True)
    rows += [{"variant": label} | {f"batch_{batch}": NOT_MEASURED for batch in BATCHES} for label in ABSENT]
    print("Wrote", write("export_speed", rows, PACKAGES, output))


def _lowered(form: Form, exported: Path, folder: Path, calibration: Sequence[Any]) -> Path:
    """The file of a form, with what `benchmarks.export.categorize` found to be kept."""
    path = folder / f"{form.name.replace(' ', '-').replace('%', '')}.onnx"
    if form.precision is Precision.FP32:
        return Path(shutil.copyfile(exported, path))
    [row] = (row for row in read(RESULTS / "export_categorize.json")["rows"] if row["variant"] == form.name)
    keep = [kept.split(" ", 1)[1] for kept in row["kept_in_float32"]]
    if form.precision is Precision.FP16:
        save_onnx(lower_floats(onnx.load(exported), FLOAT16, keep), path)
    else:
        work = path.with_suffix("")
        work.mkdir(exist_ok=True)
        Quantizer(exported, quantization_method(form.precision, form.runtime), calibration, work).write(path, keep)
    return path


def _onnx_call(path: Path, feed: dict[str, np.ndarray]) -> Call:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the served models run
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None, feed)


def _times(calls: dict[tuple[str, int], Call], rounds: int) -> dict[tuple[str, int], dict[str, float]]:
    """Milliseconds of each call: median, 20th and 80th percentile over all rounds."""
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for call in calls.values():  # compilation
        call()
    for _ in range(rounds):
        for key, call in calls.items():
            for number in range(CALLS):
                start = time.perf_counter()
                call()
                if number >= 3:  # the caches are the one's before
                    samples[key].append(1e3 * (time.perf_counter() - start))
    return {
        key: {
            f"{name}_ms": round(float(value), 3)
            for name, value in zip(("median", "p20", "p80"), np.percentile(found, [50, 20, 80]), strict=True)
        }
        for key, found in samples.items()
    }


def speed_table(rows: Sequence[Row]) -> str:
    """The README's table of times."""
    (base,) = (row["batch_8"]["median_ms"] for row in rows if row["variant"] == "CPU fp32")
    lines = []
    for row in rows:
        if row["batch_8"] == NOT_MEASURED:
            lines.append([row["variant"], NOT_MEASURED, NOT_MEASURED, None])
        else:
            one, eight = (row[f"batch_{batch}"]["median_ms"] for batch in BATCHES)
            lines.append([row["variant"], f"{one:.2f}", f"{eight:.2f}", f"{base / eight:.2f}"])
    return markdown(["encoders as", "ms, one product", "ms, eight", "throughput at eight, × fp32"], lines)
