"""Checkpoint folders of several kinds on the whole way: train, export, and one of them served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import open_feed, write_feed
from catalogue.product import Product
from client import ShelfwiseClient
from export.categorize import real_inputs
from repository.release import current
from serving.server import TritonServer
from tests.models.checkpoint_folders import network
from training.categorize import CATEGORIZER

SMALL = ("--image-height", "32", "--image-width", "32", "--embed-dim", "24", "--seed", "1")
ONE_PASS = ("--epochs", "1", "--contrastive.epochs", "1", "--head.epochs", "1")
BATCHES = ("--contrastive.batch-size", "16", "--head.batch-size", "16", "--finetune.batch-size", "16")


def run(*arguments: str) -> None:
    result = CliRunner().invoke(shelfwise.app, arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def products(sample_feed: Path) -> list[Product]:
    whole = [product for product in open_feed(sample_feed) if product.images and product.title]
    return [product for product in whole if product.split == "train"][:60] + [
        product for product in whole if product.split != "train"
    ][:12]


def checkpoint(kind: str, folder: Path, products: list[Product]) -> Path:
    """A folder of a kind with small random weights, texts with a tokenizer of the commonest words."""
    network(kind).to(torch.bfloat16).save_pretrained(folder / kind)
    words = sorted({word for product in products for word in product.title.split()})[:46]
    vocabulary = {token: number for number, token in enumerate(["[UNK]", "[PAD]", *words])} | {"[EOS]": 49}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # CLIP pools where a text ends.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 49)])
    tokenizer.save(str(folder / kind / "tokenizer.json"))
    (folder / kind / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return folder / kind


@pytest.mark.parametrize("kind", ["clip", "siglip2", "dinov2", "convnext"])
def test_a_folder_is_trained_and_exported(kind: str, products: list[Product], tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.parquet", products)
    towers = ["--image-checkpoint", str(checkpoint(kind, tmp_path, products))]
    texts = "clip" if kind == "clip" else "bert"
    towers += ["--text-checkpoint", str(checkpoint(texts, tmp_path, products))]
    feed, folder = str(tmp_path / "feed.parquet"), tmp_path / "run"
    run("train", "categorize", feed, "--run", str(folder), *towers, *SMALL, *ONE_PASS, *BATCHES)
    run("export", str(folder / "bundle"), "--repository", str(tmp_path / "repository"))
    bundle = CATEGORIZER.load(folder / "bundle")
    assert (bundle.config.image_encoder.height, bundle.config.image_encoder.width) == (32, 32)
    if kind != "dinov2":
        return
    release = current(tmp_path / "repository")
    with TritonServer(release, grpc_port=0, metrics_port=0, log_file=tmp_path / "triton.log") as server:
        with ShelfwiseClient(server.url, timeout=60) as client:
            sample = bundle.samples[0]
            answer = client.categorize(sample.images[0], sample.title, k=1).categories[0]
    inputs = real_inputs(bundle, [sample])
    with torch.no_grad():
        logits = bundle.model(*(tensor[:1] for tensor in inputs.values()))
    assert answer.id == int(bundle.model.head.class_logits(logits).argmax())
