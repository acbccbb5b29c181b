"""The export of a colour matcher: parity over shapes the exporter never saw, versions, readiness requests."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import shelfwise
from catalogue.colour_groups import colour_products
from catalogue.feed import FeedError, open_feed, write_feed
from export import match_colours
from export.bundles import export_bundle
from export.fused_colour_matcher import WEIGHTS_FILE, FusedColourMatcher, load_fused
from export.match_colours import (
    ROOMS,
    Asked,
    ServedColourMatcher,
    colour_matcher_system,
    real_inputs,
)
from export.onnx_graphs import ExportError
from export.parity import ParityError
from export.precision import Precision, Runtime
from export.system import ExportTarget
from models.colour_matcher import ColourMatcher
from models.matcher import Matcher, MatcherConfig
from repository.publish import LOCK_FILE
from repository.release import release_numbers
from training.match_colours import COLOUR_MATCHER, ColourMatcherBundle, sample_groups


def asked_about(bundle: ColourMatcherBundle, sizes: Sequence[tuple[int, int]]) -> list[Asked]:
    """Products of the given numbers of photos and labels, put together from real photos and colours."""
    every = bundle.samples
    names = [product.entities["base_colour"] for product in every]
    return [
        (
            [every[(start + place) % len(every)].images[0] for place in range(photos)],
            [f"{names[(start + place) % len(names)]} {place}" for place in range(labels)],
        )
        for start, (photos, labels) in enumerate(sizes)
    ]


@torch.no_grad()
def model_answers(bundle: ColourMatcherBundle, asked: Sequence[Asked]) -> list[np.ndarray]:
    """[n, m] a product by the network as it was trained, product by product."""
    answers = []
    for photos, labels in asked:
        flat = real_inputs(bundle, [(photos, labels)])
        tower, n, m = bundle.config.image_encoder, len(photos), len(labels)
        logits, _, _ = bundle.model(
            flat["pixel_values"].view(n, tower.height, tower.width, 3),
            flat["input_ids"].view(m, -1),
            flat["attention_mask"].view(m, -1),
            torch.arange(m),
            torch.tensor([0, n]),
            torch.tensor([0, m]),
        )
        answers.append(logits.view(n, m).softmax(-1).numpy())
    return answers


@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 7), (1, 1)], [(4, 4)] * 3, [(9, 40), (2, 2), (1, 3)], [(2, 65)]])
def test_graph_answers_as_the_model_for_products_of_any_size_in_one_batch(
    colour_bundle: Path, colour_repository: Path, sizes: list[tuple[int, int]]
) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    session = onnxruntime.InferenceSession(colour_repository / "colour_matcher" / "1" / "model.onnx")
    asked = asked_about(bundle, sizes)
    inputs = {name: tensor.numpy() for name, tensor in real_inputs(bundle, asked).items()}
    [found] = session.run(None, inputs)
    for answer, expected, (n, m) in zip(found, model_answers(bundle, asked), sizes, strict=True):
        np.testing.assert_allclose(answer[:n, :m], expected, atol=1e-5)
        assert answer.sum() == pytest.approx(n, abs=1e-4)
        assert not answer[n:].any()
        assert not answer[:, m:].any()


def test_a_product_is_answered_as_alone_in_a_batch_of_64_in_any_order_and_room(
    colour_bundle: Path, colour_repository: Path
) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    session = onnxruntime.InferenceSession(colour_repository / "colour_matcher" / "1" / "model.onnx")
    asked = asked_about(bundle, [(1 + number % 5, 1 + number % 5 + number % 7) for number in range(63)])
    large = asked_about(bundle, [(17, 33)])

    def answers(batch: list[Asked]) -> list[np.ndarray]:
        inputs = {name: tensor.numpy() for name, tensor in real_inputs(bundle, batch).items()}
        [found] = session.run(None, inputs)
        return [answer[: len(photos), : len(labels)] for answer, (photos, labels) in zip(found, batch, strict=True)]

    alone = [answers([one])[0] for one in asked]
    for found, expected in zip(answers([*asked, *large]), alone, strict=False):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for found, expected in zip(answers(asked[::-1])[::-1], alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_graph_for_tensorrt_answers_the_same_in_all_the_room_there_is(colour_bundle: Path) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    inputs = real_inputs(bundle, asked_about(bundle, [(2, 3), (1, 1), (4, 6)]))
    with torch.no_grad():
        whole = ServedColourMatcher(bundle.model, trim=False)(**inputs)
        trimmed = ServedColourMatcher(bundle.model)(**inputs)
    assert whole.shape == (3, *ROOMS[0])
    assert trimmed.shape == (3, 4, 6)
    torch.testing.assert_close(whole[:, :4, :6], trimmed, atol=1e-5, rtol=0)
    assert whole.sum() == pytest.approx(7, abs=1e-4)


def test_fused_matcher_for_a_gpu_answers_as_the_model_in_ragged_batches(
    colour_bundle: Path, fused_repository: Path
) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    folder = fused_repository / "colour_matcher" / "1"
    report = json.loads((folder / "report.json").read_text())
    assert report["precision"] == "bf16"
    assert report["parity"][0]["cosine"] >= 0.99
    assert not (folder / "model.onnx").exists()
    served = load_fused(folder, torch.device("cpu"))
    assert served.weights.matrices.dtype == torch.bfloat16
    fused = FusedColourMatcher(served.model, torch.float32, served.device)
    sizes = [(1, 1), (9, 40), (2, 2), (1, 3)]
    asked = asked_about(bundle, sizes)
    flat, tower = real_inputs(bundle, asked), bundle.config.image_encoder
    pixels = flat["pixel_values"].view(-1, tower.height, tower.width, 3)
    tokens = (flat[name].view(-1, bundle.config.text_encoder.max_length) for name in ("input_ids", "attention_mask"))
    for found, expected in zip(fused(pixels, *tokens, sizes), model_answers(bundle, asked), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fused_matcher_that_answers_differently_is_not_published(
    colour_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = match_colours.save_fused

    def spoil(folder: Path, model: ColourMatcher, dtype: torch.dtype) -> None:
        written(folder, model, dtype)
        state = load_file(folder / WEIGHTS_FILE)
        state["head.image_norm.bias"] += 3
        save_file(state, folder / WEIGHTS_FILE)

    monkeypatch.setattr(match_colours, "save_fused", spoil)
    with pytest.raises(ParityError, match=r"colour_matcher: the Python model differs from PyTorch: probability"):
        export_bundle(colour_bundle, tmp_path / "repository", target=ExportTarget(Runtime.GPU))
    assert release_numbers(tmp_path / "repository") == []


def test_what_the_kernel_does_not_have_is_refused_for_a_gpu(colour_bundle: Path, tmp_path: Path) -> None:
    bundle = COLOUR_MATCHER.load(colour_bundle)
    bundle.model.head.matcher = Matcher(MatcherConfig(edge="dot_product"))
    with pytest.raises(ExportError, match="the fused matcher cannot serve it: no packed weights"):
        colour_matcher_system(bundle, colour_bundle, ExportTarget(Runtime.GPU))
    with pytest.raises(ExportError, match="target gpu runs bf16, fp32, not fp16"):
        export_bundle(colour_bundle, tmp_path / "repository", target=ExportTarget(Runtime.GPU, Precision.FP16))


def test_a_feed_calibrates_on_its_training_split_and_its_validation_split_passes_the_gate(
    colour_bundle: Path, colour_feed: Path
) -> None:
    bundle, feed = COLOUR_MATCHER.load(colour_bundle), open_feed(colour_feed)
    alone = colour_matcher_system(bundle, colour_bundle, ExportTarget())
    system = colour_matcher_system(bundle, colour_bundle, ExportTarget(), feed)

    def answers(inputs: Sequence[Mapping[str, torch.Tensor]]) -> int:
        return sum(int(batch["pair_present"].any(2).sum()) for batch in inputs)

    photos = {split: sum(len(one.images) for one in colour_products(feed, split)) for split in ("train", "val")}
    assert alone.calibration is alone.inputs
    assert answers(system.calibration) == photos["train"]
    assert answers(system.inputs) == answers(alone.inputs) + photos["val"]


def test_a_feed_without_products_in_several_colours_is_refused(colour_bundle: Path, tmp_path: Path) -> None:
    products = COLOUR_MATCHER.load(colour_bundle).samples[:1]
    write_feed(tmp_path / "feed.parquet", products)
    with pytest.raises(FeedError, match="no product in two colours in split 'train'"):
        export_bundle(colour_bundle, tmp_path / "repository", feed=open_feed(tmp_path / "feed.parquet"))


def test_repository_holds_what_training_used_and_real_requests(colour_bundle: Path, colour_repository: Path) -> None:
    root = Path(shelfwise.__file__).parent
    for model, name, source in (
        ("prepare_colours", "images/__init__.py", "catalogue/images/__init__.py"),
        ("prepare_colours", "images/raster.py", "catalogue/images/raster.py"),
        ("prepare_colours", "colour_labels.py", "catalogue/colour_labels.py"),
        ("assign_colours", "assignment.py", "models/assignment.py"),
    ):
        assert (colour_repository / model / "1" / name).read_bytes() == (root / source).read_bytes()
    tokenizer = (colour_repository / "prepare_colours" / "1" / "tokenizer.json").read_bytes()
    assert tokenizer == (colour_bundle / "tokenizer.json").read_bytes()
    requests = json.loads((colour_repository / "match_colours" / "readiness.json").read_text())
    sample = sample_groups(COLOUR_MATCHER.load(colour_bundle).samples)[0]
    assert [base64.b64decode(image) for image in requests[0]["images"]] == [product.images[0] for product in sample]
    assert requests[0]["labels"] == [product.entities["base_colour"] for product in sample]
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
    assert release_numbers(repository) == []
    assert [path.name for path in repository.iterdir()] == [LOCK_FILE], "what was staged is removed"
