"""Waiting until a real Triton is in the state that a test is about, instead of guessing how long that takes."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from serving.server import TritonServer

# Triton tells nobody that a cancellation has reached it before it drops the request; this is long for a local one.
CANCELLATION_SECONDS = 0.5


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns as soon as the condition holds; one that does not come true fails the test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def pending_requests(server: TritonServer, model: str) -> int:
    """Requests that Triton says are waiting in a model's queue."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = f'nv_inference_pending_request_count{{model="{model}",version="1"}} '
    return next(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))
