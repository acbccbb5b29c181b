"""A model with the tensors of `categorize` whose behaviour is chosen by the title, for tests of the client.

"sleep 0.5" takes half a second; "gate PATH" touches PATH.entered and waits for PATH.open; "refuse" and "break" fail the
whole request with INVALID_ARGUMENT and INTERNAL. Every row that is answered says what arrived and how many rows this
instance has executed before, which shows whether a request that its client gave up was executed all the same.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.executed = 0

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self.answer(request) for request in requests]

    def answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        images, titles = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0] for name in ("image", "title")
        )
        executed_before = self.executed
        self.executed += len(titles)
        for row, title in enumerate(titles):
            word, _, value = title.decode().partition(" ")
            if word == "sleep":
                time.sleep(float(value))
            if word == "gate":
                Path(f"{value}.entered").touch()
                while not Path(f"{value}.open").exists():
                    time.sleep(0.01)
            if word == "refuse":
                return self.failure(f"row {row} is refused", pb_utils.TritonError.INVALID_ARG)
            if word == "break":
                return self.failure(f"row {row} broke the model", pb_utils.TritonError.INTERNAL)
        category = [
            [b"Title > " + title, b"Image bytes > %d" % len(image), b"Other"]
            for image, title in zip(images, titles, strict=True)
        ]
        rows = len(titles)
        outputs = {
            "category": np.array(category, np.object_),
            "category_id": np.arange(executed_before, executed_before + rows, dtype=np.int32)[:, None].repeat(
                3, axis=1
            ),
            "probability": np.array([[0.5, 0.25, 0.125]] * rows, np.float32),
            "neighbour_kl": np.full((rows, 1), 0.75, np.float32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in outputs.items()])

    def failure(self, text: str, code: int) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
