"""Starts the rivals: each a small server in benchmarks/serving/rivals, run by the pinned environment .venv-rivals.

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

from benchmarks.serving.load import Target
from benchmarks.serving.subjects import ROOT, Subject
from benchmarks.serving.targets import GrpcTarget, HttpTarget
from serving.environment import free_ports, locate

FOLDER = Path(__file__).resolve().parent / "rivals"
ENVIRONMENT_VARIABLE = "SHELFWISE_RIVALS_ENV"
START_SECONDS = 120.0


class RivalError(RuntimeError):
    """A rival that cannot be run: not installed, or it did not start; the message says which."""


@dataclass(frozen=True)
class Rival:
    """How a rival is started. `program` in the folder rivals; `options` after repository and port."""

    name: str
    program: str
    options: tuple[str, ...] = ()
    grpc: bool = False
    json_body: bool = False
    wants_bundle: bool = False


RIVALS = (
    Rival("FastAPI + ONNX Runtime", "fastapi_onnxruntime.py"),
    Rival(
        "FastAPI + ONNX Runtime, 1 thread, no spinning", "fastapi_onnxruntime.py", ("--threads", "1", "--no-spinning")
    ),
    Rival("LitServe", "litserve_onnxruntime.py", json_body=True),
    Rival("PyTriton decorators", "pytriton_onnxruntime.py", grpc=True),
    Rival("FastAPI + PyTorch eager", "fastapi_torch.py", wants_bundle=True),
)


def rivals_environment() -> Path:
    """The environment that runs the rivals. Raises RivalError, saying how to make it, where there is none."""
    root = Path(os.environ.get(ENVIRONMENT_VARIABLE) or ROOT / ".venv-rivals")
    if not (root / "bin" / "python").exists():
        raise RivalError(f"{root} is missing; make it with `make rivals`, or name another by {ENVIRONMENT_VARIABLE}")
    return root


@contextmanager
def running(rival: Rival, subject: Subject) -> Iterator[Target]:
    """A rival that serves `subject`, ready.

    Raises:
        RivalError: it is not installed, ended, or did not answer within `START_SECONDS`; with the end of its log.
    """
    root = rivals_environment()
    port, *others = free_ports("127.0.0.1", 3)
    command = [str(root / "bin" / "python"), str(FOLDER / rival.program), str(subject.repository), str(port)]
    command += [str(other) for other in others] if rival.grpc else []
    command += ["--bundle", str(subject.bundle)] if rival.wants_bundle else []
    environment = locate(root).process_environment()
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
            target: Target
            if rival.grpc:
                target = GrpcTarget(rival.name, f"127.0.0.1:{port}", process.pid)
            else:
                target = HttpTarget(rival.name, port, process.pid, json_body=rival.json_body)
            reason = _wait_until_it_answers(process, target, subject)
            if reason:
                log.seek(0)
                raise RivalError(f"{rival.name}: {reason}\n{log.read()[-2000:].decode(errors='replace')}")
            yield target
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
