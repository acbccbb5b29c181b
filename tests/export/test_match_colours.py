"""The export of a colour matcher: parity over shapes the exporter never saw, versions, readiness requests."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import shelfwise
from export.bundles import export_bundle
from export.match_colours import ServedColourMatcher, real_inputs
from export.parity import ParityError
from export.repository import published_versions
from training.colour_bundle import load_colour_bundle


def test_graph_answers_as_pytorch_for_any_number_of_photos_labels_and_products(
    colour_bundle: Path, colour_repository: Path
) -> None:
    bundle = load_colour_bundle(colour_bundle)
    session = onnxruntime.InferenceSession(colour_repository / "colour_matcher" / "1" / "model.onnx")
    every = [product for sample in bundle.samples for product in sample]
    for photos, labels, products in ((1, 1, 1), (1, 7, 2), (4, 4, 3), (9, 40, 1)):
        names = [f"{every[place % len(every)].entities['base_colour']} {place}" for place in range(labels)]
        inputs = real_inputs(bundle, every[:photos], names)
        inputs = {name: tensor.repeat(products, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = ServedColourMatcher(bundle.model)(**inputs).numpy()
        [found] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert found.shape == (products, photos, labels)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_repository_holds_what_training_used_and_real_requests(colour_bundle: Path, colour_repository: Path) -> None:
    root = Path(shelfwise.__file__).parent
    for model, name, source in (
        ("prepare_colours", "images.py", "catalogue/images.py"),
        ("prepare_colours", "colour_labels.py", "catalogue/colour_labels.py"),
        ("assign_colours", "assignment.py", "models/assignment.py"),
    ):
        assert (colour_repository / model / "1" / name).read_bytes() == (root / source).read_bytes()
    tokenizer = (colour_repository / "prepare_colours" / "1" / "tokenizer.json").read_bytes()
    assert tokenizer == (colour_bundle / "tokenizer.json").read_bytes()
    requests = json.loads((colour_repository / "match_colours" / "readiness.json").read_text())
    sample = load_colour_bundle(colour_bundle).samples[0]
    assert [base64.b64decode(image) for image in requests[0]["images"]] == [product.images[0] for product in sample]
    assert requests[0]["labels"] == [product.entities["base_colour"] for product in sample]
    assert published_versions(colour_repository, "match_colours") == [1]
    report = json.loads((colour_repository / "colour_matcher" / "1" / "report.json").read_text())
    assert report["parity"][0]["difference"] <= 1e-4


def test_a_graph_that_answers_differently_is_not_published(colour_bundle: Path, tmp_path: Path) -> None:
    repository, bundle = tmp_path / "repository", tmp_path / "bundle"
    shutil.copytree(colour_bundle, bundle)
    state = load_file(bundle / "model.safetensors")
    state["head.image_norm.weight"].fill_(torch.nan)  # no answer is like another
    save_file(state, bundle / "model.safetensors")
    with pytest.raises(ParityError, match=r"colour_matcher: .*probability"):
        export_bundle(bundle, repository)
    assert published_versions(repository, "match_colours") == []
    assert not (repository / "colour_matcher").exists()
