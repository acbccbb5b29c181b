"""A subject's encoders as a Hugging Face CLIP checkpoint, for servers that take one, and what these must say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks.serving.pipeline import Embeddings, Preprocessing
from benchmarks.serving.subjects import Subject
from catalogue.atomic import atomic_folder
from catalogue.product import Product
from training.categorize import CATEGORIZER


def clip_checkpoint(subject: Subject) -> Path:
    """The checkpoint folder of a subject, beside its bundle; written on first use."""
    folder = subject.bundle.with_name("clip")
    if folder.is_dir():
        return folder
    bundle = CATEGORIZER.load(subject.bundle)
    image, text = bundle.model.image_encoder, bundle.model.text_encoder
    config = CLIPConfig(
        vision_config=image.config.backbone,
        text_config=text.config.backbone,
        projection_dim=image.config.projection_dim,
    )
    clip = CLIPModel(config)
    clip.vision_model.load_state_dict(image.backbone.state_dict())
    clip.visual_projection.load_state_dict(image.projection.state_dict())
    clip.text_model.load_state_dict(text.backbone.state_dict())
    clip.text_projection.load_state_dict(text.projection.state_dict())
    processor = {
        "processor_class": "VisionTextDualEncoderProcessor",  # CLIP's own takes no other tokenizer than OpenAI's
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "image_mean": image.config.mean,
        "image_std": image.config.std,
    }
    # add_prefix_space: older releases set it to False when nothing is said, whatever tokenizer.json has.
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "add_prefix_space": True}
    with atomic_folder(folder) as aside:
        clip.save_pretrained(aside)
        bundle.tokenizer.save(str(aside / "tokenizer.json"))
        for name, content in (("preprocessor_config", processor), ("tokenizer_config", tokenizer)):
            (aside / f"{name}.json").write_text(json.dumps(content))
        # Older releases of transformers read how long a text may be from here, 20 when nothing is said.
        written = json.loads((aside / "config.json").read_text())
        (aside / "config.json").write_text(json.dumps(written | {"max_length": text.config.max_length}))
    return folder


@torch.no_grad()
def embeddings(subject: Subject, products: Sequence[Product]) -> Embeddings:
    """What the encoders say of products, in PyTorch."""
    model, preprocessing = CATEGORIZER.load(subject.bundle).model.eval(), Preprocessing(subject.repository)
    tokens = preprocessing.tokenize([product.title for product in products])
    pixels = preprocessing.decode([product.images[0] for product in products])
    image_embeds = model.image_encoder(torch.from_numpy(pixels))
    text_embeds = model.text_encoder(*map(torch.from_numpy, tokens))
    return Embeddings(np.asarray(image_embeds), np.asarray(text_embeds))
