"""A subject's encoders as a CLIP checkpoint say what the bundle says: to transformers, and behind infinity-emb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPTextConfig, CLIPVisionConfig

from benchmarks.serving import subjects
from benchmarks.serving.clip_checkpoint import clip_checkpoint, embeddings
from benchmarks.serving.correctness import difference, mistake
from benchmarks.serving.pipeline import Embeddings
from benchmarks.serving.rival_servers import INFINITY, RivalError, rivals_environment, running
from benchmarks.serving.subjects import CLIP, Subject
from catalogue.images import decode_image
from models.encoders import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig


def tiny_clip(vocabulary: int) -> tuple[ImageEncoder, TextEncoder]:
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**width).to_dict()
    text = CLIPTextConfig(**width, vocab_size=vocabulary, eos_token_id=2).to_dict()
    for config in (vision, text):
        config.pop("transformers_version", None)
    return (
        ImageEncoder(ImageEncoderConfig(backbone=vision, projection_dim=16, height=224, width=224)),
        TextEncoder(TextEncoderConfig(backbone=text, projection_dim=16, max_length=77, pooling="pooler")),
    )


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(subjects.ENCODERS, CLIP, tiny_clip)
        patch.setattr(subjects, "ROOT", tmp_path_factory.mktemp("root"))
        patch.setattr(subjects, "_fingerprint", lambda: "tiny")
        return subjects.subject(CLIP)


@pytest.fixture(scope="module")
def expected(subject: Subject) -> Embeddings:
    return embeddings(subject, subject.products[:6])


def test_transformers_reads_the_same_model_from_it(subject: Subject, expected: Embeddings) -> None:
    folder: Path = clip_checkpoint(subject)
    assert clip_checkpoint(subject) == folder
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    images = [Image.fromarray(decode_image(product.images[0], 224, 224)) for product in subject.products[:6]]
    titles = [product.title for product in subject.products[:6]]
    with torch.no_grad():
        output = model(**processor(text=titles, images=images, return_tensors="pt", padding=True))
    found = Embeddings(np.asarray(output.image_embeds), np.asarray(output.text_embeds))
    assert difference(found, expected) == ""
    assert "image_embeds" in difference(
        Embeddings(np.roll(found.image_embeds, 1, 0), found.text_embeds), expected
    )  # the images are told apart
    assert "text_embeds" in difference(Embeddings(found.image_embeds, np.roll(found.text_embeds, 1, 0)), expected)


def test_infinity_says_the_same(subject: Subject, expected: Embeddings) -> None:
    try:
        rivals_environment(INFINITY.environment)
    except RivalError as error:
        pytest.skip(str(error))
    with running(INFINITY, subject) as target:
        assert mistake(target, subject.products[:6], expected) == ""
