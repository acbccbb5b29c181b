"""Releases of small ensembles whose answers say which release each step is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from repository.publish import publish, staging
from repository.release import RELEASE_FILE, Release
from tests.serving.graphs import save_onnx

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "z" data_type: TYPE_FP32 dims: {width} label_filename: "labels.txt" }}
ensemble_scheduling {{
  step {{ model_name: "multiply" model_version: -1 input_map {{ key: "x" value: "x" }}
         output_map {{ key: "y" value: "y" }} }}
  step {{ model_name: "{second}" model_version: -1 input_map {{ key: "x" value: "y" }}
         output_map {{ key: "y" value: "z" }} }}
}}
"""
STEP = "max_batch_size: 8 instance_group { kind: KIND_CPU count: 1 } dynamic_batching { }"


def publish_linear(
    repository: Path,
    factor: float,
    summand: float,
    *,
    name: str = "linear",
    second: str = "add",
    width: int = 1,
    broken: bool = False,
) -> Release:
    """The next release of the ensemble `name`: z = factor·x + summand, in two steps, `width` times.

    `second` is what the second step is called; `broken`: it is no graph.
    """
    with staging(repository) as staged:
        given, taken = (TensorProto.FLOAT, ["batch", 1]), (TensorProto.FLOAT, ["batch", width])
        for step, operator, numbers, shape in (
            ("multiply", "Mul", [factor], given),
            (second, "Add", [summand] * width, taken),
        ):
            node = helper.make_node(operator, ["x", "number"], ["y"])
            weights = {"number": np.array(numbers, np.float32)}
            model = save_onnx(staged, step, [node], {"x": given}, {"y": shape}, weights=weights, config=STEP)
            if broken and step == second:
                model.write_bytes(b"no graph")
        ensemble = staged / name
        (ensemble / "1").mkdir(parents=True)
        (ensemble / "1" / ".gitkeep").touch()
        (ensemble / "config.pbtxt").write_text(ENSEMBLE.format(width=width, second=second))
        (ensemble / "readiness.json").write_text(json.dumps([{"x": 1.0}]))
        (ensemble / "labels.txt").write_text(f"{factor:g}x + {summand:g}\n" * width)
        return publish(repository, staged, {name: {"factor": factor}})


def copy_to_change(release: Path, target: Path) -> Path:
    """A release's models as a plain folder in Triton's layout, whose files have no digests to keep to."""
    return Path(shutil.copytree(release, target, ignore=shutil.ignore_patterns(RELEASE_FILE)))
