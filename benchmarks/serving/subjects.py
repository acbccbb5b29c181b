"""What is served in the benchmark: `categorize` with two sizes of encoder, exported through the project's own export.

Weights are random: speed does not depend on them, and no checkpoint has to be at hand. The products are drawn, the
tokenizer is trained on their titles. A repository is built once and kept under runs/ until a file that it is made from
changes. The head's last layer is scaled up so that answers are as sharp as a trained model's and can be compared.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPVisionConfig

from catalogue.images import decode_image
from catalogue.product import Product
from catalogue.sample import sample_products
from catalogue.taxonomy import Taxonomy
from export.bundles import export_bundle
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from models.encoders import (
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    small_image_encoder,
    small_text_encoder,
)
from models.tokenizer import set_length, train_tokenizer
from repository.release import current
from training.categorize import CATEGORIZER, SERVED_TOP_K, CategorizerBundle, CategorizerConfig
from training.labels import neighbour_semantic, neighbours_of_embeddings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "benchmarks/serving/clip_checkpoint.py",
    "benchmarks/serving/subjects.py",
    "catalogue",
    "export",
    "model_repository",
    "models",
    "repository",
    "training/bundle.py",
)
PRODUCTS = 64
CLIP = "ViT-B/32"
CLASSES = 142  # as many as the public fashion data has article types
SHARPNESS = 20.0


@dataclass(frozen=True)
class Subject:
    """An exported release and the products to ask it about, each with an image and a title."""

    name: str
    repository: Path
    bundle: Path
    products: list[Product]


def small_encoders(vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
    """The project's built-in encoders: a ResNet of 1.5 M parameters on 80x64 pixels, a two-layer BERT on 16 tokens."""
    return small_image_encoder(80, 64, 256), small_text_encoder(vocabulary, 16, 256)


def vit_encoders(vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
    """The shape of CLIP ViT-B/32: 12 layers of width 768 on 224x224 pixels, 12 of width 512 on 77 tokens."""
    vision = CLIPVisionConfig().to_dict()
    text = CLIPTextConfig(eos_token_id=2).to_dict()  # 2: pools at the largest token id, as OpenAI's checkpoints do
    for config in (vision, text):
        config.pop("transformers_version", None)
    assert vocabulary <= text["vocab_size"]
    return (
        ImageEncoder(ImageEncoderConfig(backbone=vision, projection_dim=512, height=224, width=224)),
        TextEncoder(TextEncoderConfig(backbone=text, projection_dim=512, max_length=77, pooling="pooler")),
    )


ENCODERS: dict[str, Callable[[int], tuple[ImageEncoder, TextEncoder]]] = {
    "small": small_encoders,
    CLIP: vit_encoders,
}


def products_to_ask(name: str) -> list[Product]:
    """Drawn products, the same ones every time.

    For CLIP their images are of just the encoder's size: servers differ in how they bring others to it.
    """
    whole = (product for product in sample_products(10 * PRODUCTS, seed=1) if product.images and product.title.strip())
    products = list(itertools.islice(whole, PRODUCTS))
    return [replace(product, images=(square(product.images[0]),)) for product in products] if name == CLIP else products


def square(image: bytes) -> bytes:
    """An image file as a JPEG of 224x224 pixels."""
    return simplejpeg.encode_jpeg(decode_image(image, 224, 224), quality=90)


def subject(name: str) -> Subject:
    """The subject of a name in `ENCODERS`, exported if no current repository lies under runs/benchmarks."""
    short = name.replace("/", "")
    folder = ROOT / "runs" / "benchmarks" / f"{short}-{_fingerprint()}"
    products = products_to_ask(name)
    if not (folder / "complete").exists():
        for outdated in folder.parent.glob(f"{short}-*"):
            shutil.rmtree(outdated)
        CATEGORIZER.save(folder / "bundle", random_bundle(name, products))
        export_bundle(folder / "bundle", folder / "repository")
        (folder / "complete").touch()
    return Subject(name, current(folder / "repository"), folder / "bundle", products)


def random_bundle(name: str, products: list[Product]) -> CategorizerBundle:
    """A categorizer of `CLASSES` made-up categories with random weights, the same ones every time."""
    torch.manual_seed(0)
    tokenizer: Tokenizer = train_tokenizer(
        [product.title for product in sample_products(400, seed=2) if product.title], vocab_size=2000
    )
    image_encoder, text_encoder = ENCODERS[name](tokenizer.get_vocab_size())
    head_config = CategoryHeadConfig(embed_dim=image_encoder.config.projection_dim, num_classes=CLASSES)
    head = CategoryHead(head_config)
    with torch.no_grad():
        last = head.mlp[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.mul_(SHARPNESS)
    embeddings = np.random.default_rng(0).standard_normal((CLASSES, 64), np.float32)
    paths = [(f"Department {number // 20:02d}", f"Category {number:03d}") for number in range(CLASSES)]
    return CategorizerBundle(
        CategorizerConfig(
            image_encoder=image_encoder.config, text_encoder=text_encoder.config, head=head_config, top_k=SERVED_TOP_K
        ),
        Categorizer(image_encoder, text_encoder, head).eval(),
        set_length(tokenizer, text_encoder.config.max_length),
        products[:8],
        {
            "labels.txt": Taxonomy.from_paths(paths),
            "neighbours.safetensors": neighbour_semantic(
                neighbours_of_embeddings(torch.from_numpy(embeddings)), "share"
            ),
        },
    )


def _fingerprint() -> str:
    """Changes with every file that a repository is made from."""
    digest = hashlib.blake2b(digest_size=8)
    for source in SOURCES:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in (".py", ".pbtxt") and file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()
