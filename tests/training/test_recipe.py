"""A third system (count_pixels.py) goes from a feed to a served answer by its value and two configurations alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import open_feed
from catalogue.images import decode_image
from export import systems
from repository.release import current
from serving.server import TritonServer
from training.recipe import choose

PROJECT = Path(__file__).resolve().parents[2]
SYSTEM = Path(__file__).with_name("count_pixels.py")
PACKAGES = ("catalogue", "client", "export", "kernels", "model_repository", "models", "repository", "training")
MODEL = """
max_batch_size: 8
instance_group { count: 1 }
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "pixel_values" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }
output { name: "answer" data_type: TYPE_FP32 dims: 1 }
ensemble_scheduling { step {
  model_name: "pixel_counter" model_version: -1
  input_map { key: "pixel_values" value: "pixel_values" }
  output_map { key: "answer" value: "answer" }
} }
"""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(systems.SYSTEMS, "count-pixels", "tests.training.count_pixels:COUNT_PIXELS")


def test_a_third_system_trains_and_loads_by_its_value_alone(
    registered: None, sample_feed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [
        "train",
        "count-pixels",
        str(sample_feed),
        "--run",
        str(run),
        "--image-height",
        "24",
        "--image-width",
        "16",
    ]
    result = CliRunner().invoke(shelfwise.app, [*command, "--epochs", "5", "--fit.batch-size=32", "--seed", "4"])
    assert result.exit_code == 0, result.output
    assert "slope" in result.output
    found, bundle = systems.load_bundle(run / "bundle")
    assert found.name == "count-pixels"
    assert bundle.config.training["settings"]["seed"] == 4
    assert bundle.config.training["settings"]["fit"]["epochs"] == 5
    assert bundle.config.training["settings"]["fit"]["batch_size"] == 32
    assert bundle.config.metrics["served"] == "line"

    again = CliRunner().invoke(shelfwise.app, [*command, "--epochs", "6"])
    assert again.exit_code == 1
    assert "belongs to a run with other settings" in again.output


def test_a_third_system_is_exported_and_served_in_a_checkout_that_names_it(sample_feed: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("shelfwise.py", "ask.py"):
        shutil.copyfile(PROJECT / file, checkout / file)
    assert len(SYSTEM.read_text().splitlines()) <= 120
    shutil.copyfile(SYSTEM, checkout / "export" / SYSTEM.name)
    names = checkout / "export" / "systems.py"
    names.write_text(
        names.read_text().replace(
            "SYSTEMS = {\n", 'SYSTEMS = {\n    "count-pixels": "export.count_pixels:COUNT_PIXELS",\n'
        )
    )
    for model, config in (("pixel_counter", MODEL), ("count_pixels", ENSEMBLE)):
        (checkout / "model_repository" / model / "1").mkdir(parents=True)
        (checkout / "model_repository" / model / "1" / ".gitkeep").touch()
        (checkout / "model_repository" / model / "config.pbtxt").write_text(config)

    size = ("--image-height", "24", "--image-width", "16")
    for command in (
        ("train", "count-pixels", str(sample_feed), "--run", "run", "--epochs", "20", *size),
        ("export", "run/bundle", "--repository", "releases"),
    ):
        subprocess.run([sys.executable, "shelfwise.py", *command], cwd=checkout, check=True, timeout=300)

    product = next(product for product in open_feed(sample_feed) if product.split == "test" and product.images)
    pixels = decode_image(product.images[0], 24, 16)
    request = InferInput("pixel_values", [1, *pixels.shape], "UINT8")
    request.set_data_from_numpy(pixels[None])
    release = current(checkout / "releases")
    with TritonServer(release, grpc_port=0, metrics_port=0, log_file=tmp_path / "triton.log") as server:
        with InferenceServerClient(server.url) as client:
            answer = client.infer("count_pixels", [request]).as_numpy("answer")
    dark = (pixels.astype(np.float64).mean(2) < 128).mean()
    assert float(answer[0, 0]) == pytest.approx(dark, abs=0.1), "the line was learnt"


def test_the_best_candidate_is_served() -> None:
    assert choose({"a": 0.2, "b": 0.7, "c": 0.5}) == "b"
    assert choose({"a": 0.2, "b": float("nan")}) == "a"
    assert choose({"a": float("nan"), "b": float("nan")}) == "b", "what was trained longest"
    with pytest.raises(ValueError, match="no stage"):
        choose({})


def test_systems_are_listed_and_unknown_ones_named() -> None:
    listed = CliRunner().invoke(shelfwise.app, ["settings"])
    assert listed.output.split() == list(systems.SYSTEMS)
    for name in systems.SYSTEMS:
        assert "--seed" in CliRunner().invoke(shelfwise.app, ["settings", name]).output
    refused = CliRunner().invoke(shelfwise.app, ["settings", "nonsense"])
    assert refused.exit_code == 1
    assert "there is no system 'nonsense'" in refused.output
