"""Starts the rivals: each a small server in benchmarks/serving/rivals, run by a pinned environment of its kind.

A rival is ready when it has answered a true request. Its whole process group is killed at the end, whatever happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.serving.clip_checkpoint import clip_checkpoint
from benchmarks.serving.load import Target
from benchmarks.serving.subjects import CLIP, ROOT, Subject
from benchmarks.serving.targets import GrpcTarget, HttpTarget, InfinityTarget
from serving.addresses import free_ports
from serving.environment import locate

FOLDER = Path(__file__).resolve().parent / "rivals"
START_SECONDS = 120.0


class RivalError(RuntimeError):
    """A rival that cannot be run: not installed, or it did not start; the message says which."""


@dataclass(frozen=True)
class Rival:
    """How a rival is started.

    Attributes:
        program: in the folder rivals.
        options: after repository and port.
        speaks: what its requests look like.
        wants_bundle: it is told where the bundle is.
        environment: which of the environments that `make rivals` makes runs it.
    """

    name: str
    program: str
    options: tuple[str, ...] = ()
    speaks: Literal["HTTP", "HTTP with JSON", "gRPC", "embeddings"] = "HTTP"
    wants_bundle: bool = False
    environment: Literal["rivals", "infinity"] = "rivals"


RIVALS = (
    Rival("FastAPI + ONNX Runtime", "fastapi_onnxruntime.py"),
    Rival(
        "FastAPI + ONNX Runtime, 1 thread, no spinning", "fastapi_onnxruntime.py", ("--threads", "1", "--no-spinning")
    ),
    Rival("LitServe", "litserve_onnxruntime.py", speaks="HTTP with JSON"),
    Rival("PyTriton decorators", "pytriton_onnxruntime.py", speaks="gRPC"),
    Rival("FastAPI + PyTorch eager", "fastapi_torch.py", wants_bundle=True),
)
INFINITY = Rival("infinity-emb", "infinity_clip.py", speaks="embeddings", environment="infinity")


def rivals_of(subject: str) -> tuple[Rival, ...]:
    """Those that can serve the subject of this name: infinity-emb knows CLIP alone."""
    return (*RIVALS, INFINITY) if subject == CLIP else RIVALS


def rivals_environment(name: str) -> Path:
    """The environment "rivals" or "infinity". Raises RivalError, saying how to make it, where there is none."""
    variable = f"SHELFWISE_{name.upper()}_ENV"
    root = Path(os.environ.get(variable) or ROOT / f".venv-{name}")
    if not (root / "bin" / "python").exists():
        raise RivalError(f"{root} is missing; make it with `make rivals`, or name another by {variable}")
    return root


@contextmanager
def running(rival: Rival, subject: Subject) -> Iterator[Target]:
    """A rival that serves `subject`, ready.

    Raises:
        RivalError: it is not installed, ended, or did not answer within `START_SECONDS`; with the end of its log.
    """
    root = rivals_environment(rival.environment)
    port, *others = free_ports("127.0.0.1", 3)
    served = clip_checkpoint(subject) if rival.speaks == "embeddings" else subject.repository
    command = [str(root / "bin" / "python"), str(FOLDER / rival.program), str(served), str(port)]
    command += [str(other) for other in others] if rival.speaks == "gRPC" else []
    command += ["--bundle", str(subject.bundle)] if rival.wants_bundle else []
    # PyTriton is a Triton, which has to find its libraries.
    environment = locate(root).process_environment() if rival.environment == "rivals" else dict(os.environ)
    environment["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, *rival.options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        try:
            target = _target(rival, port, process.pid)
            reason = _wait_until_it_answers(process, target, subject)
            if reason:
                log.seek(0)
                raise RivalError(f"{rival.name}: {reason}\n{log.read()[-2000:].decode(errors='replace')}")
            yield target
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _target(rival: Rival, port: int, pid: int) -> Target:
    if rival.speaks == "gRPC":
        return GrpcTarget(rival.name, f"127.0.0.1:{port}", pid)
    if rival.speaks == "embeddings":
        return InfinityTarget(rival.name, port, pid)
    return HttpTarget(rival.name, port, pid, json_body=rival.speaks == "HTTP with JSON")


def _wait_until_it_answers(process: subprocess.Popen[bytes], target: Target, subject: Subject) -> str:
    """Returns "" once a true request was answered, else why there is no hope."""
    product = subject.products[0]
    request = target.prepare([product.images[0]], [product.title])
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = target.connect()
        try:
            connection.call(request)
            return ""
        except Exception as error:  # refused, reset, not loaded yet: each protocol has its own
            if process.poll() is not None:
                return f"ended with status {process.returncode}"
            if time.monotonic() > deadline:
                return f"no answer within {START_SECONDS:g} s: {error}"
        finally:
            connection.close()
        time.sleep(0.2)
