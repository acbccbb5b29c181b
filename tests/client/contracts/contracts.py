"""Every served contract as a Triton Python model, whose answers are digests of the inputs that arrived.

For tests of the client: an input that lands elsewhere, a row that gets its neighbour's answer or an output that is read
as another changes a digest, which the test computes for itself.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import triton_python_backend_utils as pb_utils


def digest(*parts: bytes) -> np.ndarray:
    """[4] floats between 0 and 1."""
    whole = hashlib.sha256(b"|".join(parts)).digest()
    return np.frombuffer(whole[:4], np.uint8) / np.float32(255)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.answer = getattr(self, args["model_name"])
        self.inputs = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self.respond(request) for request in requests]

    def respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        columns = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
        answers = [self.answer(*(column[row].tolist() for column in columns)) for row in range(len(columns[0]))]
        outputs = {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in outputs.items()])

    def categorize(self, image: list[bytes], title: list[bytes]) -> dict[str, np.ndarray]:
        names = [b"A > " + title[0], b"A > B", b"C"]
        return {
            "category": np.array(names, np.object_),
            "category_id": np.arange(3, dtype=np.int32) + len(image[0]),
            "probability": digest(*image, *title)[:3],
            "neighbour_kl": digest(*image, *title)[3:],
        }

    def match_colours(self, images: list[bytes], labels: list[bytes]) -> dict[str, np.ndarray]:
        probability = np.array([[digest(image, label)[0] for label in labels] for image in images], np.float32)
        return {"probability": probability, "assignment": np.arange(len(images), dtype=np.int32)}

    def embed_image(self, image: list[bytes]) -> dict[str, np.ndarray]:
        return {"image_embeds": digest(*image)}

    def embed_text(self, description: list[bytes], entities: list[bytes]) -> dict[str, np.ndarray]:
        return {"text_embeds": digest(*description, *entities)}

    def search(
        self, query: list[bytes], image: list[bytes], like: list[bytes], entities: list[bytes], filters: list[bytes],
        k: list[int],
    ) -> dict[str, np.ndarray]:  # fmt: skip
        found = [b"%s #%d" % (query[0], rank) for rank in range(k[0])]
        whole = digest(*query, *image, *like, *entities, *filters)
        return {
            "product_id": np.array([*found, b""], np.object_),  # as a row that is shorter than its neighbours
            "score": np.resize(whole, k[0] + 1),
            "photo": np.arange(k[0] + 1, dtype=np.int32),
            "image_score": np.resize(whole[1:], k[0] + 1),
            "text_score": np.resize(whole[2:], k[0] + 1),
            "matched_entities": np.array([b"brand,base_colour", *[b""] * k[0]], np.object_),
        }

    def match_text_image(self, query: list[bytes], title: list[bytes], image: list[bytes]) -> dict[str, np.ndarray]:
        found = [digest(*query, each, *image) for each in title]
        return {
            "probability": np.array([probability for probability, *_ in found]),
            "text_cut": np.array([len(each) > len("title") for each in title]),
        }
