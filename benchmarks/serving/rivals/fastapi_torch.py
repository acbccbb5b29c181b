"""Rival: FastAPI in front of the PyTorch module itself, eager, without an export."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from benchmarks.serving.pipeline import Answers, Preprocessing
from export.onnx_graphs import ServedCategoryHead
from training.categorize import CATEGORIZER


class TorchPipeline:
    """`Pipeline` with the bundle's modules in the place of the ONNX files."""

    def __init__(self, repository: Path, bundle: Path) -> None:
        loaded = CATEGORIZER.load(bundle)
        self.preprocessing = Preprocessing(repository)
        self.model = loaded.model
        self.head = ServedCategoryHead(
            loaded.model.head, loaded.extras["neighbours.safetensors"], loaded.config.top_k
        ).eval()
        self.labels = np.array([" > ".join(path) for path in loaded.extras["labels.txt"].paths], np.object_)

    @torch.inference_mode()
    def __call__(self, images: list[bytes], titles: list[str]) -> Answers:
        input_ids, attention_mask = map(torch.from_numpy, self.preprocessing.tokenize(titles))
        pixel_values = torch.from_numpy(self.preprocessing.decode(images))
        present = torch.ones(len(images), 1, dtype=torch.bool)
        text_embeds = self.model.text_encoder(input_ids, attention_mask)
        image_embeds = self.model.image_encoder(pixel_values)
        category_id, probability, neighbour_kl, *_ = self.head(image_embeds, text_embeds, present, present)
        ids = category_id.numpy()
        return Answers(self.labels[ids], ids, probability.numpy(), neighbour_kl.numpy())


def application(pipeline: TorchPipeline) -> FastAPI:
    """The web application around a pipeline."""
    app = FastAPI()

    @app.post("/categorize")
    async def categorize(request: Request, title: str) -> dict:
        image = await request.body()
        answers = await run_in_threadpool(pipeline, [image], [title])
        return answers.rows()[0]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--bundle", type=Path, required=True)
    arguments = parser.parse_args()
    app = application(TorchPipeline(arguments.repository, arguments.bundle))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
