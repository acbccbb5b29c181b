"""Readiness that a deployer can trust: one true inference through every ensemble of a repository.

Triton's own readiness says that models were loaded; it stays green when the process behind a Python model was killed or
hangs. Here an exported ensemble brings real requests along (`<repository>/<ensemble>/readiness.json`), they are sent as
any caller would send them, and the answers must be complete and finite. All ensembles are asked at once under one
deadline, so that a hung model costs the probe its deadline and never more. A model too busy to take the request is
ready as long as it answers others: Triton's own count of answers must rise while the probe waits.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import queue
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from repository.configs import READINESS_FILE, RepositoryError, is_ensemble, model_configs
from repository.release import current
from serving.addresses import is_loopback
from serving.shared_memory import is_stopping

# Inputs that carry encoded image files; readiness.json holds them in base64, all other BYTES as text.
IMAGE_INPUTS = frozenset({"image", "images"})
# What Triton says when a queue is at its max_queue_size, and how long to look whether it moves.
QUEUE_FULL = "Exceeds maximum queue size"
BUSY_SECONDS = 0.1

# The number of a request, and what came of it.
Answer = tuple[int, InferResult | None, InferenceServerException | None]


class NotReady(RuntimeError):
    """The server does not answer, or an ensemble does not answer correctly; `reasons` says which and why."""

    def __init__(self, url: str, reasons: Mapping[str, str]) -> None:
        self.url = url
        self.reasons = dict(reasons)
        super().__init__(f"{url} is not ready: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def connect(url: str, credentials: grpc.ChannelCredentials | None = None) -> InferenceServerClient:
    """A client of the server at `url`, to be used as a context; loopback is not asked through a proxy."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    proxy = [("grpc.enable_http_proxy", 0)] if is_loopback(url) else []
    return InferenceServerClient(url, creds=credentials, channel_args=unlimited + proxy)


def check(
    url: str,
    repository: Path,
    timeout: float = 10.0,
    *,
    model: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[str]:
    """Send every ensemble of `repository` its own readiness requests.

    `url` is the server's gRPC address, "host:port"; `timeout` is the deadline of the whole check, in seconds; `model`
    limits it to one ensemble, or to those that one step is part of; `credentials` and `headers` are for a server behind
    TLS and for one whose protocols are gated by a header.
    Returns the names of the ensembles that answered, or are too busy to and answer others: all of them. Raises NotReady
    with the reason for each that did not: unreachable, an error, no answer within the deadline, an output missing or
    not finite, no readiness requests; for a server of this machine that is about to stop; and for a repository without
    a release.
    """
    try:
        repository = current(repository)
        configs = [config for config in model_configs(repository) if is_ensemble(config)]
    except RepositoryError as error:
        raise NotReady(url, {"repository": f"there is nothing to ask the server: {error}"}) from None
    if is_loopback(url) and is_stopping(int(url.rpartition(":")[2])):
        raise NotReady(url, {"server": "is about to stop"})
    deadline = time.monotonic() + timeout
    ensembles = {
        config.name: config
        for config in configs
        if model in (None, config.name, *(s.model_name for s in config.ensemble_scheduling.step))
    }
    if model is not None and not ensembles:
        raise NotReady(url, {model: f"{repository} has no ensemble of that name, and none with such a step"})
    reasons: dict[str, str] = {}
    requests: list[tuple[str, list[InferInput]]] = []
    for name, config in ensembles.items():
        try:
            requests += [(name, request) for request in readiness_requests(repository, config)]
        except ValueError as error:
            reasons[name] = str(error)
    with connect(url, credentials) as client:
        # Whether the server answers at all: with no reply to this, one sentence is better than one for each ensemble.
        try:
            if not client.is_server_ready(headers, client_timeout=timeout):
                reasons["server"] = "Triton reports that not all models are available"
        except InferenceServerException as error:
            raise NotReady(url, {"server": _reason(error, timeout)}) from None
        before = {name: _answered(client, name, headers) for name in ensembles}
        answers: queue.SimpleQueue[tuple[int, InferResult | None, InferenceServerException | None]] = (
            queue.SimpleQueue()
        )

        def send(number: int) -> None:
            client.async_infer(
                *requests[number],
                callback=lambda result, error: answers.put((number, result, error)),
                client_timeout=max(0.001, deadline - time.monotonic()),
                headers=headers,
            )

        unanswered = set(range(len(requests)))
        for number in sorted(unanswered):
            send(number)
        while unanswered:
            try:
                # gRPC reports the deadline itself; the extra second is for a client that does not even do that.
                number, result, failure = answers.get(timeout=max(0.0, deadline - time.monotonic()) + 1.0)
            except queue.Empty:
                reasons |= {requests[number][0]: f"no answer within {timeout:g} s" for number in unanswered}
                break
            name = requests[number][0]
            reason = _wrong_answer(ensembles[name], result) if result is not None else _reason(failure, timeout)
            late = failure is not None and time.monotonic() >= deadline
            if QUEUE_FULL in reason or late:
                time.sleep(BUSY_SECONDS)
                if _answered(client, name, headers) > before[name]:
                    reason = ""  # it answers others
                elif not late:
                    send(number)
                    continue
            unanswered.remove(number)
            if reason:
                reasons.setdefault(name, reason)
    if reasons:
        raise NotReady(url, reasons)
    return list(ensembles)


def _answered(client: InferenceServerClient, model: str, headers: Mapping[str, str] | None) -> int:
    """How many requests a model has answered without an error since it was loaded; 0 where that is not told."""
    try:
        statistics = client.get_inference_statistics(model, headers=headers, client_timeout=1.0)
    except InferenceServerException:
        return 0
    return sum(version.inference_stats.success.count for version in statistics.model_stats)


def ask(
    client: InferenceServerClient,
    model: str,
    config: ModelConfig,
    repository: Path,
    timeout: float = 30.0,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send the readiness requests of the ensemble `config` to `model`, another name for it or the ensemble itself.

    `timeout` is the deadline of each request, in seconds. Raises NotReady with what is wrong with the first bad answer.
    """
    try:
        for inputs in readiness_requests(repository, config):
            result = client.infer(model, inputs, client_timeout=timeout, headers=headers)
            reason = _wrong_answer(config, result)
            if reason:
                raise NotReady(model, {model: reason})
    except InferenceServerException as error:
        raise NotReady(model, {model: _reason(error, timeout)}) from None
    except ValueError as error:
        raise NotReady(model, {model: str(error)}) from None


def readiness_requests(repository: Path, config: ModelConfig) -> Iterator[list[InferInput]]:
    """The requests in an ensemble's readiness.json: a JSON list of objects {input: value}, one row each.

    A value is what the input holds for one row: a string, a number, or a list of them. Strings of the inputs "image"
    and "images" are base64. Raises ValueError saying what is wrong with the file.
    """
    path = repository / config.name / READINESS_FILE
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; export the bundle again to have it written") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of at least one request")
    for row in rows:
        missing = {tensor.name for tensor in config.input} - set(row)
        if missing:
            raise ValueError(f"{path} lacks a value for {', '.join(sorted(missing))}")
        yield [
            _infer_input(tensor, row[tensor.name], path, batched=config.max_batch_size > 0) for tensor in config.input
        ]


def _infer_input(tensor: Any, value: Any, path: Path, *, batched: bool) -> InferInput:
    data_type = type_name(tensor)
    elements = value if isinstance(value, list) else [value]
    if data_type == "BYTES":
        try:
            decoded = [_bytes(element, tensor.name) for element in elements]
        except (binascii.Error, AttributeError) as error:
            raise ValueError(f"{path}: {tensor.name}: {error}") from None
        array = np.array(decoded, dtype=np.object_)
    else:
        array = np.asarray(elements, dtype=triton_to_np_dtype(data_type))
    if batched:
        array = array[None]
    infer_input = InferInput(tensor.name, array.shape, data_type)
    infer_input.set_data_from_numpy(array)
    return infer_input


def _bytes(element: str, input_name: str) -> bytes:
    return base64.b64decode(element, validate=True) if input_name in IMAGE_INPUTS else element.encode()


def type_name(tensor: Any) -> str:
    """The data type of a configured tensor as the protocol names it: "FP32", "BYTES"."""
    name = DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _wrong_answer(config: ModelConfig, result: InferResult) -> str:
    """What is wrong with an answer, "" when nothing is: all outputs there, none of them empty, numbers finite."""
    for tensor in config.output:
        array = result.as_numpy(tensor.name)
        if array is None or array.size == 0:
            return f"output {tensor.name} is missing or empty"
        if array.dtype.kind == "f" and not math.isfinite(float(array.sum(dtype=np.float64))):
            return f"output {tensor.name} is not finite"
    return ""


def _reason(error: InferenceServerException | None, timeout: float) -> str:
    if error is None:
        return "neither an answer nor an error"
    if "DEADLINE_EXCEEDED" in str(error.status()) or "Deadline Exceeded" in str(error.message()):
        return f"no answer within {timeout:g} s"
    return error.message() or str(error)
