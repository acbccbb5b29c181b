"""A model with the tensors of `categorize` that computes next to nothing, for jobs that are killed a hundred times.

Its category is a function of title, image and the letter in letter.txt beside it. "refuse" as a title fails the request
with INVALID_ARGUMENT; "gate PATH" touches PATH.entered and waits for PATH.open.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.letter = (Path(__file__).parent / "letter.txt").read_bytes()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self.answer(request) for request in requests]

    def answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        images, titles = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0] for name in ("image", "title")
        )
        for row, title in enumerate(titles):
            word, _, value = title.decode().partition(" ")
            if word == "refuse":
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(f"row {row} is refused", pb_utils.TritonError.INVALID_ARG)
                )
            if word == "gate":
                Path(f"{value}.entered").touch()
                while not Path(f"{value}.open").exists():
                    time.sleep(0.01)
        hashes = [blake2b(image + title, digest_size=4).digest() for image, title in zip(images, titles, strict=True)]
        numbers = np.array([[int.from_bytes(value, "big")] for value in hashes])
        outputs = {
            "category": np.array(
                [[self.letter + b" > " + value.hex().encode(), b"other"] for value in hashes], np.object_
            ),
            "category_id": np.hstack([numbers % 100, numbers % 100 + 1]).astype(np.int32),
            "probability": np.hstack([0.5 + numbers / 2**33, 0.5 - numbers / 2**33]).astype(np.float32),
            "neighbour_kl": np.ones((len(titles), 1), np.float32),
            "sure_from": np.full((len(titles), 1), 0.5, np.float32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
