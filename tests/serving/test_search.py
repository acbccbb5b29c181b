"""embed_image, embed_text and search through a real Triton, beside what PyTorch and an exact search give."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from catalogue.feed import open_feed
from catalogue.product import Product
from export.retrieve import encoder_of, real_inputs
from index.snapshot import Snapshot, open_snapshot
from serving.server import ServerError, TritonServer
from tests.releases import copy_to_change
from training.retrieval import RETRIEVER, RetrievalBundle


@pytest.fixture(scope="module")
def bundle(retrieve_bundle: Path) -> RetrievalBundle:
    return RETRIEVER.load(retrieve_bundle)


@pytest.fixture(scope="module")
def snapshot(retrieve_bundle: Path) -> Snapshot:
    return open_snapshot(retrieve_bundle.parent / "index", encoder_of(retrieve_bundle))


@pytest.fixture(scope="module")
def products(sample_feed: Path) -> list[Product]:
    return [product for product in open_feed(sample_feed) if product.images and product.title]


@pytest.fixture
def client(retrieve_server: TritonServer) -> InferenceServerClient:
    return InferenceServerClient(retrieve_server.url)


def ask(client: InferenceServerClient, model: str, **given: Any) -> InferResult:
    """A request of rows [B, n] of texts or bytes by input; k is a number."""
    inputs = []
    for name, rows in given.items():
        if name == "k":
            array, kind = np.array(rows, np.int32), "INT32"
        else:
            encoded = [[value.encode() if isinstance(value, str) else value for value in row] for row in rows]
            array, kind = np.array(encoded, np.object_), "BYTES"
        tensor = InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs, client_timeout=60)


def ids(result: InferResult, row: int = 0) -> list[str]:
    return [found.decode() for found in result.as_numpy("product_id")[row] if found]


def exact(snapshot: Snapshot, query: np.ndarray, kept: Sequence[int] | None = None) -> list[str]:
    """Products by their best photo, in float64."""
    scores = snapshot.vectors.astype(np.float64) @ query
    best = [scores[snapshot.first_photo[p] : snapshot.first_photo[p + 1]].max() for p in range(len(snapshot))]
    order = np.argsort(-np.array(best))
    return [snapshot.id_of(int(p)) for p in order if kept is None or int(p) in kept]


def test_embeddings_are_those_of_pytorch(
    client: InferenceServerClient, bundle: RetrievalBundle, products: list[Product]
) -> None:
    some = products[:3]
    inputs = real_inputs(bundle, some)
    vocabulary = bundle.extras["entities.json"]
    with torch.no_grad():
        images = bundle.model.embed_image(inputs["pixel_values"])[:3].numpy()
        texts = bundle.model.embed_text(
            *(inputs[name][:3] for name in ("input_ids", "attention_mask", "described", "entity_ids"))
        ).numpy()
    served = ask(client, "embed_image", image=[[product.images[0]] for product in some])
    np.testing.assert_allclose(served.as_numpy("image_embeds"), images, atol=1e-4)
    served = ask(
        client,
        "embed_text",
        description=[[vocabulary.parse(product.title).description] for product in some],
        entities=[[product.entities.get(group, "") for group in vocabulary.groups] for product in some],
    )
    np.testing.assert_allclose(served.as_numpy("text_embeds"), texts, atol=1e-4)


def test_a_query_is_parsed_and_answered_as_an_exact_search_does(
    client: InferenceServerClient, bundle: RetrievalBundle, snapshot: Snapshot, products: list[Product]
) -> None:
    product = products[4]
    query = ask_text(bundle, product.title)
    result = ask(client, "search", query=[[product.title]], k=[[7]])
    assert ids(result) == exact(snapshot, query)[:7]
    np.testing.assert_allclose(result.as_numpy("score"), result.as_numpy("text_score"), atol=1e-5)
    assert not result.as_numpy("image_score").any()


def ask_text(bundle: RetrievalBundle, title: str) -> np.ndarray:
    """The embedding of a title as a query."""
    inputs = real_inputs(bundle, [Product("x", (WHITE,), title, (), {}, "test")])
    with torch.no_grad():
        names = ("input_ids", "attention_mask", "described", "entity_ids")
        return bundle.model.embed_text(*(inputs[name][1:] for name in names))[0].numpy()


def _white() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(file, "PNG")
    return file.getvalue()


WHITE = _white()


def test_entities_asked_for_are_named_with_the_hits(
    client: InferenceServerClient, snapshot: Snapshot, products: list[Product]
) -> None:
    colour = products[0].entities["base_colour"]
    result = ask(client, "search", query=[[f"{colour.upper()} something"]], k=[[20]])
    by_id = {product.id: product for product in products}
    for found, matched in zip(ids(result), result.as_numpy("matched_entities")[0], strict=True):
        if found in by_id:
            assert (b"base_colour" in matched) == (by_id[found].entities.get("base_colour") == colour)


def test_a_photo_finds_its_own_product_and_which_photo_it_was(
    client: InferenceServerClient, products: list[Product]
) -> None:
    product = next(product for product in products if len(product.images) > 1)
    result = ask(client, "search", image=[[product.images[1]]], k=[[3]])
    assert ids(result)[0] == product.id
    assert result.as_numpy("photo")[0, 0] == 1
    assert result.as_numpy("score")[0, 0] == pytest.approx(1, abs=1e-3)


def test_more_like_a_product_leaves_the_product_out(
    client: InferenceServerClient, snapshot: Snapshot, products: list[Product]
) -> None:
    product = products[3]
    number = snapshot.product_of(product.id)
    assert number is not None
    vector = snapshot.vectors[snapshot.first_photo[number]]
    expected = [name for name in exact(snapshot, vector) if name != product.id]
    assert ids(ask(client, "search", like=[[product.id]], k=[[6]])) == expected[:6]


def test_text_and_image_together_are_the_mean_of_both(
    client: InferenceServerClient, bundle: RetrievalBundle, snapshot: Snapshot, products: list[Product]
) -> None:
    with torch.no_grad():
        image = bundle.model.embed_image(real_inputs(bundle, [products[2]])["pixel_values"])[0].numpy()
    both = image + ask_text(bundle, products[9].title)
    result = ask(client, "search", query=[[products[9].title]], image=[[products[2].images[0]]], k=[[5]])
    assert ids(result) == exact(snapshot, both / np.linalg.norm(both))[:5]


def test_filters_keep_what_they_name_and_give_all_there_is(
    client: InferenceServerClient, snapshot: Snapshot, products: list[Product]
) -> None:
    columns = list(snapshot.manifest.columns)
    place, red = columns.index("base_colour"), products[0].entities["base_colour"]
    code = snapshot.manifest.columns["base_colour"].index(red)
    kept = set(np.flatnonzero(snapshot.attributes[:, place] == code).tolist())
    result = ask(client, "search", query=[["shoe"]], filters=[[f"base_colour={red.lower()}"]], k=[[1000]])
    assert {snapshot.product_of(found) for found in ids(result)} == kept
    none = ask(client, "search", query=[["shoe"]], filters=[["base_colour=No Such Colour"]])
    assert ids(none) == []


def test_rows_of_a_batch_are_answered_as_if_alone(client: InferenceServerClient, products: list[Product]) -> None:
    rows = [(products[0].title, b""), ("", products[1].images[0]), (products[2].title, products[3].images[0])]
    together = ask(client, "search", query=[[q] for q, _ in rows], image=[[i] for _, i in rows], k=[[5]] * 3)
    for row, (query, image) in enumerate(rows):
        alone = ask(client, "search", query=[[query]], image=[[image]], k=[[5]])
        assert ids(together, row) == ids(alone)
        np.testing.assert_allclose(together.as_numpy("score")[row], alone.as_numpy("score")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": [[" "]]}, "nothing to embed or to search by"),
        ({"query": [[""]], "image": [[""]], "like": [[""]]}, "nothing to embed or to search by"),
        ({"query": [[b"\xff"]]}, "query is not valid UTF-8: byte 0xff at position 0"),
        ({"image": [[b"no image"]]}, "not an image"),
        ({"query": [["x"]], "entities": [["Nike"]]}, "1 entities given, 5 expected: brand, base_colour"),
        ({"query": [["x"]], "filters": [["price=1"]]}, "no attribute 'price' to filter by; it has brand"),
        ({"query": [["x"]], "filters": [["price"]]}, "a filter is written attribute=value, got 'price'"),
        ({"like": [["nobody"]]}, "the index holds no product 'nobody'"),
        ({"query": [["x"]], "k": [[0]]}, "k is 0; it must be one number from 1 to 1000"),
        ({"query": [["x"], ["y"]], "k": [[1], [2]]}, "k is 1, 2; it must be one number"),
    ],
)
def test_bad_requests_are_refused_with_what_is_wrong(
    client: InferenceServerClient, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(client, "search", **given)
    assert message in str(refused.value)
    assert "INVALID_ARGUMENT" in str(refused.value.status())
    assert ids(ask(client, "search", query=[["shoe"]]))


def test_unknown_entities_count_as_absent(client: InferenceServerClient) -> None:
    plain = ask(client, "embed_text", description=[["canvas shoe"]], entities=[[""] * 5])
    unknown = ask(client, "embed_text", description=[["canvas shoe"]], entities=[["No Such Brand", "", "", "", ""]])
    assert (plain.as_numpy("text_embeds") == unknown.as_numpy("text_embeds")).all()


def test_triton_refuses_an_index_of_another_encoder_with_both_hashes(
    retrieve_repository: Path, retrieve_bundle: Path, tmp_path: Path
) -> None:
    models = copy_to_change(retrieve_repository, tmp_path / "models")
    [manifest] = models.glob("search_index/*/snapshot/manifest.json")
    content = json.loads(manifest.read_text())
    content["encoder"]["model"] = "ff"
    manifest.write_text(json.dumps(content))
    log = tmp_path / "triton.log"
    with pytest.raises(ServerError):
        with TritonServer(models, grpc_port=0, metrics_port=0, log_file=log):
            pass
    expected = encoder_of(retrieve_bundle).model
    assert f"made by another encoder: its model is ff, that of the queries {expected}" in log.read_text()
