"""A retriever's export: one graph whose towers are computed where asked for, and an index that fits the encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import open_feed, write_feed
from catalogue.images import decode_image
from export.bundles import export_bundle
from export.index_feed import index_feed
from export.retrieve import encoder_of, lost_recall, publish_index, real_inputs
from index.search import Searcher
from index.snapshot import SnapshotError, open_snapshot
from repository.configs import RepositoryError
from repository.release import current
from training.retrieval import RETRIEVER, RetrievalBundle


@pytest.fixture(scope="module")
def bundle(retrieve_bundle: Path) -> RetrievalBundle:
    return RETRIEVER.load(retrieve_bundle)


@pytest.fixture
def own(retrieve_bundle: Path, tmp_path: Path) -> Path:
    """The run's bundle and index, to be changed."""
    shutil.copytree(retrieve_bundle.parent / "index", tmp_path / "index")
    return Path(shutil.copytree(retrieve_bundle, tmp_path / "bundle"))


def encoder_session(release: Path) -> onnxruntime.InferenceSession:
    [path] = release.glob("query_encoder/*/model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_graph_answers_as_pytorch_does(retrieve_repository: Path, bundle: RetrievalBundle) -> None:
    inputs = real_inputs(bundle, bundle.samples[:9])
    found = encoder_session(retrieve_repository).run(
        ["image_embeds", "text_embeds"], {name: tensor.numpy() for name, tensor in inputs.items()}
    )
    names = ("input_ids", "attention_mask", "described", "entity_ids")
    with torch.no_grad():
        expected = [
            bundle.model.embed_image(inputs["pixel_values"]),
            bundle.model.embed_text(*(inputs[name] for name in names)),
        ]
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), atol=1e-4)


def test_a_tower_nobody_asks_for_is_not_computed(retrieve_repository: Path, bundle: RetrievalBundle) -> None:
    session = encoder_session(retrieve_repository)
    inputs = {name: tensor.numpy() for name, tensor in real_inputs(bundle, bundle.samples[:3]).items()}
    nobody = np.zeros((6, 1), bool)
    image, text = session.run(["image_embeds", "text_embeds"], inputs | {"image_present": nobody})
    assert not image.any()
    assert np.allclose(np.linalg.norm(text, axis=1), 1, atol=1e-4)
    one = nobody.copy()
    one[2] = True
    image, text = session.run(["image_embeds", "text_embeds"], inputs | {"image_present": one, "text_present": nobody})
    assert np.allclose(np.linalg.norm(image[2]), 1, atol=1e-4)
    assert not text.any()
    # Both towers lie in branches: outside them nothing is left to compute.
    [path] = retrieve_repository.glob("query_encoder/*/model.onnx")
    outside = {node.op_type for node in onnx.load(path).graph.node}
    assert outside == {"Shape", "Cast", "ReduceMax", "If"}


def test_embeddings_that_lose_recall_are_not_published(bundle: RetrievalBundle) -> None:
    inputs = real_inputs(bundle, bundle.samples)
    generator = torch.Generator().manual_seed(0)
    rows = len(inputs["pixel_values"])
    images = torch.nn.functional.normalize(torch.randn(rows // 2, 16, generator=generator), dim=1).repeat(2, 1)
    right = inputs | {"image_embeds": images, "text_embeds": images}
    assert lost_recall([right], [right]) == []
    noisy = torch.nn.functional.normalize(images + 3 * torch.randn(rows, 16, generator=generator), dim=1)
    [sentence] = lost_recall([right], [right | {"text_embeds": noisy}])
    assert sentence.startswith("recall@10 of texts for photos falls from 1.0000 to 0.")


def test_the_index_holds_what_pytorch_embeds(retrieve_bundle: Path, bundle: RetrievalBundle, sample_feed: Path) -> None:
    snapshot = open_snapshot(retrieve_bundle.parent / "index", encoder_of(retrieve_bundle))
    products = [product for product in open_feed(sample_feed) if product.images]
    assert len(snapshot) == len(products)
    product = products[7]
    number = snapshot.product_of(product.id)
    assert number is not None
    rows = slice(*snapshot.first_photo[number : number + 2])
    size = bundle.config.image_encoder.height, bundle.config.image_encoder.width
    pixels = torch.from_numpy(np.stack([decode_image(image, *size) for image in product.images]))
    with torch.no_grad():
        np.testing.assert_allclose(snapshot.vectors[rows], bundle.model.embed_image(pixels).numpy(), atol=1e-5)
    hits = Searcher(snapshot).search(snapshot.vectors[rows], 1, {"category": [product.category[0]]})
    assert [int(hit.products[0]) for hit in hits] == [number] * len(product.images)


def test_a_second_run_embeds_what_changed_and_publishes_it_alone(own: Path, sample_feed: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = export_bundle(own, repository).release
    products = list(open_feed(sample_feed))
    changed = tmp_path / "changed.parquet"
    write_feed(changed, products[5:])
    command = ["index", str(changed), "--bundle", str(own), "--repository", str(repository)]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 0, result.output
    gone = sum(bool(product.images) for product in products[:5])
    assert f"0 embedded, {sum(len(p.images) for p in products[5:])} known; {gone} products gone" in result.output
    assert f"release {first + 1} published" in result.output
    served = json.loads((current(repository) / "release.json").read_text())
    assert served["ensembles"]["search"]["products"] == sum(bool(product.images) for product in products[5:])
    # What did not change is the same file in both releases.
    before, after = (next((repository / str(n)).glob("query_encoder/*/model.onnx")) for n in (first, first + 1))
    assert before.stat().st_ino == after.stat().st_ino


def test_an_index_of_another_bundle_is_refused_with_both_hashes(
    own: Path, retrieve_bundle: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    export_bundle(own, repository)
    expected = encoder_of(own).model
    config = json.loads((own / "config.json").read_text())
    config["image_encoder"]["mean"] = [0.1, 0.2, 0.3]
    (own / "config.json").write_text(json.dumps(config))
    other = encoder_of(own).model
    with pytest.raises(SnapshotError, match=f"model is {expected}, that of the queries {other}"):
        export_bundle(own, repository)
    other_bundle = RETRIEVER.load(own)
    index_feed([], other_bundle, own)  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match=f"model is {other}, that of the queries {expected}"):
        publish_index(other_bundle, own, repository)
    assert current(repository).name == "1"


def test_a_repository_without_a_retriever_takes_no_index(
    own: Path, bundle: RetrievalBundle, categorize_repository: Path
) -> None:
    with pytest.raises(RepositoryError, match="serves no retriever yet"):
        publish_index(bundle, own, categorize_repository.parent)
