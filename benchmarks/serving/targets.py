"""How the load generator talks to each kind of server: gRPC to Triton and PyTriton, our own client, HTTP to the rest.

All are as light as Python lets them be, so that the server is what is measured: gRPC sends messages that were built
before, HTTP keeps its connection and sends the image file as the body and the title in the query, without multipart
forms or base64. tritonclient and the project's own client are targets, too: their calls are whole, from bytes to what
the caller reads.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
    service_pb2,
    service_pb2_grpc,
)

from benchmarks.serving.load import Connection
from benchmarks.serving.pipeline import Answers, Embeddings
from client import Categorization, ShelfwiseClient
from client.tensors import bytes_tensor

TIMEOUT = 60.0
OUTPUTS = ("category", "category_id", "probability", "neighbour_kl")
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection a caller, as separate processes would have
)


class GrpcConnection:
    """A channel of its own, and one call at a time on it."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def call(self, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        return self.stub.ModelInfer(request, timeout=TIMEOUT)

    def close(self) -> None:
        self.channel.close()


@dataclass(frozen=True)
class GrpcTarget:
    """A server that speaks Triton's protocol; `model` takes image and title, both BYTES [B, 1]."""

    name: str
    url: str
    pid: int
    model: str = "categorize"

    def connect(self) -> Connection:
        return GrpcConnection(self.url)

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> service_pb2.ModelInferRequest:
        tensor = service_pb2.ModelInferRequest.InferInputTensor
        wanted = service_pb2.ModelInferRequest.InferRequestedOutputTensor
        return service_pb2.ModelInferRequest(
            model_name=self.model,
            outputs=[wanted(name=name) for name in OUTPUTS],
            inputs=[tensor(name=name, datatype="BYTES", shape=(len(images), 1)) for name in ("image", "title")],
            raw_input_contents=[bytes_tensor(images), bytes_tensor([title.encode() for title in titles])],
        )

    def read(self, answer: service_pb2.ModelInferResponse) -> Answers:
        result = InferResult(answer)
        arrays = {name: result.as_numpy(name) for name in OUTPUTS[1:]}
        names = result.as_numpy("category")
        category = np.array([name.decode() for name in names.ravel()], np.object_).reshape(names.shape)
        return Answers(category=category, **arrays)


class TritonclientConnection:
    """tritonclient as its users write it: numpy arrays in, numpy arrays out."""

    def __init__(self, url: str) -> None:
        self.client = InferenceServerClient(url)
        self.outputs = [InferRequestedOutput(name) for name in OUTPUTS]

    def call(self, request: tuple[bytes, str]) -> Answers:
        inputs = []
        for name, element in zip(("image", "title"), (request[0], request[1].encode()), strict=True):
            tensor = InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[element]], np.object_))
            inputs.append(tensor)
        result = self.client.infer("categorize", inputs, outputs=self.outputs, client_timeout=TIMEOUT)
        return Answers(**{name: result.as_numpy(name) for name in OUTPUTS})

    def close(self) -> None:
        self.client.close()


class OwnClientConnection:
    """A `ShelfwiseClient`, asked for the twenty most probable categories."""

    def __init__(self, url: str) -> None:
        self.client = ShelfwiseClient(url, timeout=TIMEOUT)

    def call(self, request: tuple[bytes, str]) -> Categorization:
        image, title = request
        return self.client.categorize(image=image, title=title, k=20)

    def close(self) -> None:
        self.client.close()


@dataclass(frozen=True)
class WholeCallTarget:
    """Triton, a row a call, by a client that makes the message and reads the answer within the call."""

    name: str
    url: str
    pid: int

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> tuple[bytes, str]:
        if len(images) != 1:
            raise ValueError(f"a call is about one product, not {len(images)}")
        return images[0], titles[0]


class TritonclientTarget(WholeCallTarget):
    """Triton, called through tritonclient's `InferenceServerClient.infer`."""

    def connect(self) -> Connection:
        return TritonclientConnection(self.url)

    def read(self, answer: Answers) -> Answers:
        names = [[name.decode() for name in row] for row in answer.category]
        return replace(answer, category=np.array(names, np.object_))


class OwnClientTarget(WholeCallTarget):
    """Triton, called through `ShelfwiseClient.categorize`."""

    def connect(self) -> Connection:
        return OwnClientConnection(self.url)

    def read(self, answer: Categorization) -> Answers:
        categories = answer.categories
        return Answers(
            np.array([[category.label for category in categories]], np.object_),
            np.array([[category.id for category in categories]]),
            np.array([[category.probability for category in categories]]),
            np.array([[answer.neighbour_kl]]),
        )


class HttpConnection:
    """A connection that is kept open."""

    def __init__(self, port: int, content_type: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self.content_type = content_type

    def call(self, request: tuple[str, bytes]) -> bytes:
        path, body = request
        self.connection.request("POST", path, body, {"Content-Type": self.content_type})
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP status {response.status}: {content[:200].decode(errors='replace')}")
        return content

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class HttpTarget:
    """A server with POST /categorize, a row a request, whose answer is a JSON object.

    The image file is the body and the title is in the query, or with `json_body` both are in a JSON object.
    """

    name: str
    port: int
    pid: int
    json_body: bool = False

    def connect(self) -> Connection:
        return HttpConnection(self.port, "application/json" if self.json_body else "application/octet-stream")

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> tuple[str, bytes]:
        if len(images) != 1:
            raise ValueError(f"the HTTP servers take one product a request, not {len(images)}")
        if self.json_body:
            row = {"image": base64.b64encode(images[0]).decode(), "title": titles[0]}
            return "/categorize", json.dumps(row).encode()
        return "/categorize?" + urllib.parse.urlencode({"title": titles[0]}), images[0]

    def read(self, answer: bytes) -> Answers:
        row: dict[str, Any] = json.loads(answer)
        return Answers(
            np.array([row["category"]], np.object_),
            np.array([row["category_id"]]),
            np.array([row["probability"]]),
            np.array([row["neighbour_kl"]]),
        )


class InfinityConnection:
    """Two requests a product, one after the other: the protocol has one modality a request."""

    def __init__(self, port: int) -> None:
        self.connection = HttpConnection(port, "application/json")

    def call(self, request: Sequence[tuple[str, bytes]]) -> list[bytes]:
        return [self.connection.call(part) for part in request]

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class InfinityTarget:
    """infinity-emb: the embeddings of a product's image and of its title, through the API of OpenAI's form."""

    name: str
    port: int
    pid: int

    def connect(self) -> Connection:
        return InfinityConnection(self.port)

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> list[tuple[str, bytes]]:
        files = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
        return [
            ("/embeddings", json.dumps(asked | {"model": "clip", "encoding_format": "base64"}).encode())
            for asked in ({"input": files, "modality": "image"}, {"input": [*titles], "modality": "text"})
        ]

    def read(self, answer: Sequence[bytes]) -> Embeddings:
        return Embeddings(*map(self._vectors, answer))

    def _vectors(self, answer: bytes) -> np.ndarray:
        rows = json.loads(answer)["data"]
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), np.float32) for row in rows])
