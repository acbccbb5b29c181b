"""The limit as a target of the load generator: `Pipeline` called by one thread of this process, no server between."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.serving.load import Connection
from benchmarks.serving.pipeline import Answers, Pipeline


class InProcessConnection:
    """The pipeline itself."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def call(self, request: tuple[Sequence[bytes], Sequence[str]]) -> Answers:
        return self.pipeline(*request)

    def close(self) -> None: ...


class InProcessTarget:
    """ONNX Runtime with its defaults: all cores, threads that spin. Nothing else runs, so that is its best setting."""

    name = "in-process ONNX Runtime"

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.pid = os.getpid()

    def connect(self) -> Connection:
        return InProcessConnection(self.pipeline)

    def prepare(self, images: Sequence[bytes], titles: Sequence[str]) -> tuple[Sequence[bytes], Sequence[str]]:
        return images, titles

    def read(self, answer: Answers) -> Answers:
        return answer
