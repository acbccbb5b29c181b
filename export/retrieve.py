"""A retriever's bundle as the ensembles `embed_image`, `embed_text` and `search`, and its index as a part of a release.

Both towers are one graph, `query_encoder`, in which each is computed only for a batch that asks for it. An export
publishes the index that lies beside the bundle together with the encoder, as one release; `publish_index` replaces the
index alone. What vectors depend on is hashed from the bundle and lies beside the served encoder (encoder.json): an
index that another bundle made is refused, here and when Triton loads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import catalogue.colour_words
import catalogue.entities
import catalogue.images
import index.filters
import index.partition
import index.search
import index.snapshot
from catalogue.entities import EntityVocabulary
from catalogue.feed import Feed
from catalogue.images import decode_image
from catalogue.product import Product
from index.snapshot import Encoder, check_encoder, open_snapshot, read_manifest
from models.retriever import Retriever
from repository.configs import READINESS_FILE, RepositoryError, copy_source
from repository.publish import publish, staging
from repository.release import Release, current
from training.retrieval import VOCABULARY_FILE, RetrievalBundle, RetrievalRecipe, RetrievalSettings
from training.retrieval_examples import make_texts
from training.retrieval_metrics import retrieval_report

from .categorize import whole_products
from .onnx_graphs import EXAMPLE_ROWS, GraphSpec, trimmed
from .precision import Runtime
from .system import ExportTarget, ServedSystem, copy_module
from .systems import System

ENCODER_FILE = "encoder.json"
INDEX_FOLDER = "index"
CALIBRATION_PRODUCTS = 256
PARITY_PRODUCTS = 1000
READINESS_REQUESTS = 3
LOST_RECALL = 0.005


class ServedText(nn.Module):
    """The text side of a retriever; `trim` as in `ServedEncoders`."""

    def __init__(self, model: Retriever, *, trim: bool = True) -> None:
        super().__init__()
        self.model = model
        self.trim = trim

    def forward(self, input_ids: Tensor, attention_mask: Tensor, described: Tensor, entity_ids: Tensor) -> Tensor:
        """text_embeds [B, D]; arguments as in `Retriever.embed_text`."""
        if self.trim:
            input_ids, attention_mask = trimmed(input_ids, attention_mask)
        return self.model.embed_text(input_ids, attention_mask, described, entity_ids)


def retriever_system(
    bundle: RetrievalBundle, bundle_folder: Path, target: ExportTarget, feed: Feed | None = None
) -> ServedSystem:
    """What there is to export of a retriever for a target; arguments as in `export.bundles.export_bundle`."""
    inputs = calibration = [real_inputs(bundle, bundle.samples)]
    if feed is not None:
        calibration = [real_inputs(bundle, whole_products(feed, "train", CALIBRATION_PRODUCTS))]
        inputs = [*inputs, real_inputs(bundle, whole_products(feed, "val", PARITY_PRODUCTS))]
    shown = [product for product in bundle.samples if product.images][:READINESS_REQUESTS]
    ensembles = {
        "embed_image": [{"image": _as_text(product.images[0])} for product in shown],
        "embed_text": [described_request(bundle, product) for product in shown],
    }
    snapshot = bundle_folder.parent / INDEX_FOLDER
    if snapshot.is_dir():
        check_encoder(read_manifest(snapshot).encoder, encoder_of(bundle_folder), snapshot)
        ensembles["search"] = search_requests(bundle)
    return ServedSystem(
        ensembles=ensembles,
        graphs=retriever_graphs(bundle, trim=target.runtime is not Runtime.TENSORRT),
        fused="query_encoder",
        inputs=inputs,
        calibration=calibration,
        write_files=lambda path: _write_files(bundle, bundle_folder, path, snapshot if "search" in ensembles else None),
        release={"trained_on": bundle.config.training.get("feed"), "recipe": bundle.config.metrics.get("served")},
        faults=lost_recall,
    )


def lost_recall(
    expected: Sequence[Mapping[str, Tensor]], served: Sequence[Mapping[str, Tensor]], most: float = LOST_RECALL
) -> list[str]:
    """Whether texts find their photos as often by the files' embeddings as by PyTorch's: a sentence where they do not.

    Among all rows of the parity check together, each photo once for every text that belongs to it.
    """
    recalls = []
    for batches in (expected, served):
        images, texts = (
            np.concatenate([batch[name].numpy() for batch in batches]) for name in ("image_embeds", "text_embeds")
        )
        photos = np.concatenate([batch["pixel_values"].numpy() for batch in batches]).reshape(len(images), -1)
        _, first, which = np.unique(photos, axis=0, return_index=True, return_inverse=True)
        report = retrieval_report(texts, images[first], [[int(photo)] for photo in which.ravel()])
        recalls.append(report.recall[10])
    before, after = recalls
    if after >= before - most:
        return []
    return [f"recall@10 of texts for photos falls from {before:.4f} to {after:.4f}, may fall by {most}"]


def retriever_graphs(bundle: RetrievalBundle, *, trim: bool = True) -> list[GraphSpec]:
    """The two towers."""
    config = bundle.config
    tokens = torch.ones(EXAMPLE_ROWS, config.text_encoder.max_length, dtype=torch.int64)
    pixels = torch.zeros(EXAMPLE_ROWS, config.image_encoder.height, config.image_encoder.width, 3, dtype=torch.uint8)
    return [
        GraphSpec(
            "image_encoder",
            bundle.model.image_encoder,
            {"pixel_values": pixels},
            ["image_embeds"],
            only_where="image_present",
        ),
        GraphSpec(
            "text_encoder",
            ServedText(bundle.model, trim=trim),
            {
                "input_ids": tokens,
                "attention_mask": tokens.clone(),
                "described": torch.ones(EXAMPLE_ROWS, 1, dtype=torch.bool),
                "entity_ids": torch.ones(EXAMPLE_ROWS, len(config.entities.groups), dtype=torch.int64),
            },
            ["text_embeds"],
            only_where="text_present",
        ),
    ]


def real_inputs(bundle: RetrievalBundle, products: Sequence[Product]) -> dict[str, Tensor]:
    """Products as the encoders see them, M in all: with what the feed says, and with the title alone as a query."""
    vocabulary, config = vocabulary_of(bundle), bundle.config.image_encoder
    shown = [product for product in products if product.images]
    parsed = [vocabulary.parse(product.title) for product in shown]
    descriptions = [text.description for text in parsed] * 2
    of_feed = [{group: product.entities.get(group, "") for group in vocabulary.groups} for product in shown]
    texts = make_texts(bundle.tokenizer, vocabulary, descriptions, [*of_feed, *(text.entities for text in parsed)])
    pixels = np.stack([decode_image(product.images[0], config.height, config.width) for product in shown])
    everything = torch.ones(len(descriptions), 1, dtype=torch.bool)
    tensors = texts.batch(np.arange(len(descriptions)))
    del tensors["description_keys"]
    return {
        "pixel_values": torch.from_numpy(np.concatenate([pixels, pixels])),
        "image_present": everything,
        "text_present": everything.clone(),
        **tensors,
    }


def described_request(bundle: RetrievalBundle, product: Product) -> dict[str, Any]:
    """A product's text as embed_text takes it."""
    vocabulary = vocabulary_of(bundle)
    return {
        "description": vocabulary.parse(product.title).description,
        "entities": [product.entities.get(group, "") for group in vocabulary.groups],
    }


def vocabulary_of(bundle: RetrievalBundle) -> EntityVocabulary:
    """The entities that a bundle knows."""
    found: EntityVocabulary = bundle.extras[VOCABULARY_FILE]
    return found


def encoder_of(folder: Path) -> Encoder:
    """The hashes of a bundle's encoder.

    Args:
        folder: of the bundle.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = json.dumps({name: config[name] for name in ("image_encoder", "text_encoder", "entities")})
    size = [config["image_encoder"][side] for side in ("height", "width")]
    decoder = Path(catalogue.images.__file__).parent
    return Encoder(
        model=_digest((folder / "model.safetensors").read_bytes(), architecture.encode()),
        tokenizer=_digest((folder / "tokenizer.json").read_bytes(), (folder / VOCABULARY_FILE).read_bytes()),
        preprocessing=_digest(json.dumps(size).encode(), *(file.read_bytes() for file in sorted(decoder.glob("*.py")))),
    )


def publish_index(bundle: RetrievalBundle, bundle_folder: Path, repository: Path) -> Release:
    """Makes the index beside a bundle part of the next release of a repository, which serves the bundle's encoder.

    Raises:
        repository.configs.RepositoryError: the repository has no release, or none with a retriever.
        index.snapshot.SnapshotError: the snapshot is damaged, or the release's encoder is another.
    """
    served = sorted(current(repository).glob(f"query_encoder/*/{ENCODER_FILE}"))
    if not served:
        raise RepositoryError(f"{repository} serves no retriever yet: `shelfwise export {bundle_folder}`")
    snapshot = open_snapshot(bundle_folder.parent / INDEX_FOLDER, Encoder(**json.loads(served[-1].read_text())))
    with staging(repository) as staged:
        for model in ("search", "search_index"):
            copy_source(model, staged)
        _write_index(bundle, snapshot.folder, staged / "search_index" / "1")
        requests = json.dumps(search_requests(bundle), ensure_ascii=False, indent=2)
        (staged / "search" / READINESS_FILE).write_text(requests, encoding="utf-8")
        manifest = snapshot.manifest
        about = {"products": manifest.products, "photos": manifest.photos, **asdict(manifest.encoder)}
        return publish(repository, staged, {"search": about})


def search_requests(bundle: RetrievalBundle) -> list[dict[str, Any]]:
    """Searches that a ready server must answer: a sample's title, and its photo."""
    product = next(product for product in bundle.samples if product.images)
    none = {"query": "", "image": "", "entities": [""] * len(vocabulary_of(bundle).groups), "like": "", "filters": [""]}
    asked = [{"query": product.title}] if product.title else []
    return [{**none, "k": 5, **given} for given in [*asked, {"image": _as_text(product.images[0])}]]


def _write_index(bundle: RetrievalBundle, snapshot: Path, folder: Path) -> None:
    """What search_index reads: a snapshot, and the code that searches it."""
    shutil.copytree(snapshot, folder / "snapshot")
    modules = (index.snapshot, index.filters, index.search, index.partition)
    _copy_package(folder / "served_index", *(str(module.__file__) for module in modules))
    (folder / "groups.json").write_text(json.dumps(vocabulary_of(bundle).groups) + "\n")


def _write_files(
    bundle: RetrievalBundle, bundle_folder: Path, path: Callable[[str], Path], snapshot: Path | None
) -> None:
    prepare = path("prepare_query")
    copy_module(catalogue.images, prepare)
    _copy_package(prepare / "served_entities", catalogue.entities.__file__, catalogue.colour_words.__file__)
    for name in ("tokenizer.json", VOCABULARY_FILE):
        shutil.copyfile(bundle_folder / name, prepare / name)
    tower = bundle.config.image_encoder
    sizes = {"height": tower.height, "width": tower.width, "max_length": bundle.config.text_encoder.max_length}
    (prepare / "preprocessing.json").write_text(json.dumps(sizes) + "\n")
    encoder = json.dumps(asdict(encoder_of(bundle_folder)))
    (path("query_encoder") / ENCODER_FILE).write_text(encoder + "\n")
    if snapshot is not None:
        _write_index(bundle, snapshot, path("search_index"))


def _copy_package(folder: Path, *modules: str) -> None:
    """Modules of one package, which import each other, to a package of their own."""
    folder.mkdir()
    (folder / "__init__.py").touch()
    for module in modules:
        shutil.copyfile(module, folder / Path(module).name)


def _as_text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def report_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a bundle, a line a candidate and direction, then attributes and gates."""
    lines = []
    for name, figures in metrics.items():
        if not isinstance(figures, dict) or "sum_of_recalls" not in figures:
            continue
        served = " (served)" if name == metrics["served"] else ""
        for way in ("image to text", "text to image"):
            all_of = figures[way]
            lines.append(
                f"{name + served:20} {way}  R@1 {all_of['recall_at_1']:.4f}  R@5 {all_of['recall_at_5']:.4f}  "
                f"R@10 {all_of['recall_at_10']:.4f}  MRR {all_of['mrr']:.4f}"
            )
        for group, found in figures["attributes"].items():
            lines.append(f"{'':20} {group} → product  P@1 {found['precision_at_1']:.4f}  MRR {found['mrr']:.4f}")
        lines.append(f"{'':20} gates  " + "  ".join(f"{group} {gate:.2f}" for group, gate in figures["gates"].items()))
    return lines


RETRIEVE = System(
    "retrieve",
    RetrievalSettings,
    RetrievalRecipe,
    served=retriever_system,
    report=report_lines,
    demo="benchmarks.demos.retrieve:demonstrate",
)
