"""Feeds and releases of next to no cost, and the answers that they must have."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from catalogue.feed import write_feed
from catalogue.product import Product
from repository.publish import publish, staging
from repository.release import Release

TENSORS = """
input { name: "image" data_type: TYPE_STRING dims: 1 }
input { name: "title" data_type: TYPE_STRING dims: 1 }
output { name: "category" data_type: TYPE_STRING dims: -1 }
output { name: "category_id" data_type: TYPE_INT32 dims: -1 }
output { name: "probability" data_type: TYPE_FP32 dims: -1 }
output { name: "neighbour_kl" data_type: TYPE_FP32 dims: 1 }
output { name: "sure_from" data_type: TYPE_FP32 dims: 1 }
max_batch_size: 64
"""
NAMES = ("image", "title"), ("category", "category_id", "probability", "neighbour_kl", "sure_from")


def publish_cheap(repository: Path, letter: str) -> Release:
    """The next release: an ensemble `categorize` of the one step cheap_model.py, whose answers begin with a letter."""
    with staging(repository) as staged:
        version = staged / "cheap" / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("cheap_model.py"), version / "model.py")
        (version / "letter.txt").write_text(letter)
        own = "instance_group { kind: KIND_CPU count: 1 }"
        (staged / "cheap" / "config.pbtxt").write_text(TENSORS + own)
        maps = [
            f'{kind} {{ key: "{name}" value: "{name}" }}'
            for kind, names in zip(("input_map", "output_map"), NAMES, strict=True)
            for name in names
        ]
        step = f'step {{ model_name: "cheap" model_version: -1 {" ".join(maps)} }}'
        (staged / "categorize" / "1").mkdir(parents=True)
        (staged / "categorize" / "1" / ".gitkeep").touch()
        config = f'platform: "ensemble" {TENSORS} ensemble_scheduling {{ {step} }}'
        (staged / "categorize" / "config.pbtxt").write_text(config)
        (staged / "categorize" / "readiness.json").write_text('[{"image": "", "title": "ready"}]')
        return publish(repository, staged, {"categorize": {}})


def expected(letter: str, product: Product) -> str:
    """The category of a product."""
    content = (product.images[0] if product.images else b"") + product.title.encode()
    return f"{letter} > {blake2b(content, digest_size=4).hexdigest()}"


def products(count: int, *, first: int = 0, refused: Iterable[int] = ()) -> list[Product]:
    """Products with a title and, every second one, the bytes of an image; those that are refused among them."""
    refused = set(refused)
    return [
        Product(
            id=f"p{number:05d}",
            images=(b"image %d" % number,) if number % 2 else (),
            title="refuse" if number in refused else f"title {number}",
            category=(),
            entities={},
            split="train",
        )
        for number in range(first, first + count)
    ]


def feed_of(path: Path, given: Iterable[Product]) -> Path:
    """A feed of products."""
    write_feed(path, given)
    return path
