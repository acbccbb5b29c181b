"""More requests than can be computed: what is refused, what is dropped, and that a probe tells busy from dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelQueuePolicy
from tritonclient.utils import InferenceServerException

from serving import readiness
from serving.server import TritonServer
from tests.serving.graphs import ROOT
from tests.serving.models import pass_gate, stubs, write_gatekeeper
from tests.triton_state import CANCELLATION_SECONDS, pending_requests, wait_for

QUEUE = 3
CONFIGURATIONS = sorted((ROOT / "model_repository").glob("*/config.pbtxt"))


@pytest.fixture(scope="module")
def server(start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    """One Python model of one instance, with room for three waiting requests."""
    folder = tmp_path_factory.mktemp("lane")
    return start_server(write_gatekeeper(folder / "repository", folder / "readiness", QUEUE))


@contextmanager
def flood(server: TritonServer, gate: Path, callers: int) -> Iterator[None]:
    """So many callers ask again and again, whatever the answer, until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                pass_gate(server, gate, 10.0)
            except InferenceServerException:
                time.sleep(0.001)

    with ThreadPoolExecutor(callers) as pool:
        for _ in range(callers):
            pool.submit(ask)
        try:
            yield
        finally:
            ended.set()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "model_repository").glob("*/config.pbtxt")), ids=lambda p: p.parent.name
)
def test_every_queue_of_the_repository_is_bounded(path: Path) -> None:
    config = text_format.Parse(path.read_text(), ModelConfig())
    if config.platform == "ensemble":
        return  # has no queue of its own: its requests wait in those of its steps
    policy = config.dynamic_batching.default_queue_policy
    assert 0 < policy.max_queue_size <= 256
    assert policy.timeout_action == ModelQueuePolicy.TimeoutAction.REJECT
    assert policy.allow_timeout_override
    assert policy.default_timeout_microseconds > 0


def test_full_queue_refuses_the_next_request_at_once(server: TritonServer, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1 + QUEUE) as callers:
        held = [callers.submit(pass_gate, server, tmp_path / "held")]
        wait_for((tmp_path / "held.entered").exists)
        held += [callers.submit(pass_gate, server, tmp_path / f"waiting-{number}") for number in range(QUEUE)]
        wait_for(lambda: pending_requests(server, "gatekeeper") == QUEUE)
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as refused:
            pass_gate(server, tmp_path / "refused")
        assert "UNAVAILABLE" in str(refused.value.status())
        assert not any(answer.done() for answer in held), "it was refused while all others still waited"
        # Nothing moves: this server may be dead.
        with pytest.raises(readiness.NotReady, match=r"lane: .*Exceeds maximum queue size"):
            server.wait_until_ready(1.0)
        for name in ("held", *(f"waiting-{number}" for number in range(QUEUE))):
            (tmp_path / f"{name}.open").touch()
        for answer in held:
            answer.result()
    assert not (tmp_path / "refused.entered").exists()
    assert server.wait_until_ready(10) == ["lane"]


def test_a_server_too_busy_for_the_probe_is_ready(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "gate.open").touch()
    with flood(server, tmp_path / "gate", callers=4 * QUEUE):
        wait_for((tmp_path / "gate.entered").exists)
        for _ in range(10):
            assert server.wait_until_ready(5) == ["lane"]


@pytest.mark.parametrize("model", ["gatekeeper", "lane"])
def test_request_whose_caller_gave_up_is_dropped_from_the_queue(
    model: str, start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = start_server(write_gatekeeper(tmp_path / "repository", tmp_path / "readiness"))
    names = [f"waiting-{number}" for number in range(6)]
    with ThreadPoolExecutor(7) as callers:
        busy = callers.submit(pass_gate, server, tmp_path / "first")
        wait_for((tmp_path / "first.entered").exists)
        waiting = [callers.submit(pass_gate, server, tmp_path / name, 3.0, model) for name in names]
        wait_for(lambda: pending_requests(server, "gatekeeper") == 6)
        for answer in waiting:
            with pytest.raises(InferenceServerException, match=r"Deadline Exceeded|Request timeout expired"):
                answer.result()
        time.sleep(CANCELLATION_SECONDS)
        for name in ("first", "last", *names):
            (tmp_path / f"{name}.open").touch()
        busy.result()
    pass_gate(server, tmp_path / "last")
    # Triton 2.51 hands up to two requests to an instance ahead of time; those it no longer drops.
    assert len(list(tmp_path.glob("waiting-*.entered"))) <= 2


def test_a_dead_process_behind_a_full_queue_is_not_ready(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "gate.open").touch()
    with flood(server, tmp_path / "gate", callers=4 * QUEUE):
        wait_for((tmp_path / "gate.entered").exists)
        (stub,) = stubs(server)
        stub.kill()
        for _ in range(3):
            with pytest.raises(readiness.NotReady):  # whatever the reason: Triton 24.10 itself may die of it
                server.wait_until_ready(3.0)
