"""Rival: LitServe in front of ONNX Runtime, with its dynamic batching. Takes JSON, so the image travels as base64."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

import litserve

from benchmarks.serving.pipeline import Pipeline


class Categorize(litserve.LitAPI):
    """One worker; batches of what arrives within a millisecond."""

    def __init__(self, repository: Path) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.001, api_path="/categorize")
        self.repository = repository

    def setup(self, device: str) -> None:
        self.pipeline = Pipeline(self.repository)

    def decode_request(self, request: dict) -> tuple[bytes, str]:
        return base64.b64decode(request["image"]), request["title"]

    def batch(self, inputs: list[tuple[bytes, str]]) -> list[tuple[bytes, str]]:
        return inputs

    def predict(self, batch: list[tuple[bytes, str]]) -> list[dict]:
        images, titles = zip(*batch, strict=True)
        return self.pipeline(images, titles).rows()

    def unbatch(self, output: list[dict]) -> list[dict]:
        return output

    def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    server = litserve.LitServer(Categorize(arguments.repository), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)
