"""A system that only counts dark pixels: all that a new one takes beside its two configurations (test_recipe.py).

A line is fitted to the share of dark pixels of a photo; a second, worse line is there to be chosen against.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from catalogue.images import decode_image
from export.onnx_graphs import GraphSpec
from export.system import ServedSystem
from export.systems import System
from models.encoders import TextEncoderConfig
from models.tokenizer import set_length, train_tokenizer
from training.bundle import Bundle, BundleConfig, BundleKind
from training.embeddings import CachedEmbeddings, Embeddings
from training.recipe import Recipe, Stage
from training.settings import Settings, TrainConfig
from training.train import Batch, Losses, Task


class PixelConfig(BundleConfig):
    system: Literal["count-pixels"] = "count-pixels"
    height: int
    width: int
    text: TextEncoderConfig


class PixelSettings(Settings):
    aliases: ClassVar = {"epochs": "fit.epochs"}
    fit: TrainConfig = TrainConfig(epochs=3, batch_size=16, learning_rate=0.1)


class PixelModel(nn.Module):
    """A line through the share of dark pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        dark = (pixel_values.to(torch.float32).mean(3) < 128).to(torch.float32).mean((1, 2))
        return self.line(dark[:, None])


class PixelTask(Task[PixelModel]):
    def __init__(self, model: PixelModel, rows: Tensor, name: str = "fit") -> None:
        super().__init__()
        self.name = name
        nothing = torch.zeros(len(rows), 1, dtype=torch.bool)
        self.model = model
        self.dataset = CachedEmbeddings(Embeddings(rows, nothing, nothing, nothing, nothing[:, 0].long()))

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        return {"answer": model(batch["image_embeds"]), "dark": (batch["image_embeds"].float().mean(3) < 128).float()}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        return {"square": F.mse_loss(outputs["answer"][:, 0], outputs["dark"].mean((1, 2)))}

    def evaluate(self) -> dict[str, float]:
        return {"slope": float(self.model.line.weight.detach())}


class PixelRecipe(Recipe[PixelSettings, PixelConfig, PixelModel]):
    kind = BundleKind(PixelConfig, lambda config: PixelModel(), text_encoder=lambda config: config.text)

    def stages(self) -> Iterator[Stage]:
        self.tokenizer: Tokenizer = set_length(train_tokenizer(self.store.titles, 300), 8)
        model = PixelModel().to(self.accelerator.device)
        rows = torch.from_numpy(np.array(self.store.pixel_values)).to(self.accelerator.device)
        yield Stage(PixelTask(model, rows), self.settings.fit, ("line", model))
        worse = copy.deepcopy(model)
        worse.line.weight.data -= 100.0
        yield Stage(PixelTask(worse, rows, "worse"), TrainConfig(epochs=0), ("worse", worse))

    def score(self, model: PixelModel) -> float:
        return float(model.line.weight)

    def measure(self, model: PixelModel) -> dict[str, Any]:
        return {"slope": float(model.line.weight)}

    def config(self, model: PixelModel) -> PixelConfig:
        text = TextEncoderConfig(backbone={"vocab_size": 300}, projection_dim=1, max_length=8)
        return PixelConfig(height=self.store.size[0], width=self.store.size[1], text=text)


def served(bundle: Bundle[PixelConfig, PixelModel], folder: Path, target: object, feed: object) -> ServedSystem:
    height, width = bundle.config.height, bundle.config.width
    images = [product.images[0] for product in bundle.samples if product.images]
    pixels = torch.from_numpy(np.stack([decode_image(image, height, width) for image in images]))
    graph = GraphSpec("pixel_counter", bundle.model, {"pixel_values": pixels[:3]}, ["answer"])
    inputs = [{"pixel_values": pixels}]
    request = [{"pixel_values": pixels[0].tolist()}]
    return ServedSystem({"count_pixels": request}, [graph], inputs, inputs, lambda path: None, {})


COUNT_PIXELS = System(
    "count-pixels", PixelSettings, PixelRecipe, served, report=lambda metrics: [json.dumps(metrics)], demo=""
)
