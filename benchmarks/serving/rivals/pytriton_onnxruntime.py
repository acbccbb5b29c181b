"""Rival: PyTriton's decorators in front of ONNX Runtime: Triton with one Python function behind it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.pipeline import Pipeline


def serve(repository: Path, port: int, http_port: int, metrics_port: int) -> None:
    """Serve until killed."""
    pipeline = Pipeline(repository)

    @batch
    def categorize(image: np.ndarray, title: np.ndarray) -> dict[str, np.ndarray]:
        answers = pipeline(image.ravel().tolist(), [text.decode() for text in title.ravel()])
        category = np.char.encode(answers.category.astype(str), "utf-8")
        return {
            "category": category.astype(np.object_),
            "category_id": answers.category_id,
            "probability": answers.probability,
            "neighbour_kl": answers.neighbour_kl,
        }

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=port,
        metrics_address="127.0.0.1",
        metrics_port=metrics_port,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="categorize",
            infer_func=categorize,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,)), Tensor(name="title", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="category", dtype=bytes, shape=(-1,)),
                Tensor(name="category_id", dtype=np.int32, shape=(-1,)),
                Tensor(name="probability", dtype=np.float32, shape=(-1,)),
                Tensor(name="neighbour_kl", dtype=np.float32, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher()),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("port", type=int, help="of gRPC")
    parser.add_argument("http_port", type=int)
    parser.add_argument("metrics_port", type=int)
    arguments = parser.parse_args()
    serve(arguments.repository, arguments.port, arguments.http_port, arguments.metrics_port)
