"""One run of the tritonserver binary: tied to this process, its log read, its model processes watched, its end awaited.

Triton is started by the thread that reads its log, under `setpriv --pdeathsig`: the kernel kills it when that thread
ends, which is when its log does or when this process is killed, and the stubs of its Python models follow (they look
for their parent three times a second). Whether it serves is read off its own sockets: it listens once all models are
loaded, and another server on the same port cannot be mistaken for it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

LOG_LINE = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d")
FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version (?P<version>\d+): (?P<reason>.*)", re.DOTALL)
# Errors that every Triton without a GPU logs, and that mean nothing.
HARMLESS = ("CudaDriverHelper has not been initialized", "CUDA driver version is insufficient for CUDA runtime version")
# What Triton says once no request is under way any more, what it says of each model that it unloads then, and how long
# one may take: stubs need about a second.
DRAINED = "All models are stopped, unloading models"
UNLOADED = "successfully unloaded '"
UNLOAD_SECONDS = 5.0
KEPT_LOG_LINES = 2000


class Triton:
    """A started tritonserver.

    Arguments: `command` its command line; `environment` its variables; `folder` its working directory; `descriptor` an
    open file that it inherits; `log_file` where its log is appended (None: stderr). Raises OSError.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        descriptor: int,
        log_file: Path | None,
    ) -> None:
        self._log: collections.deque[str] = collections.deque(maxlen=KEPT_LOG_LINES)
        self._drained = threading.Event()
        self._last_unload = 0.0
        self._stubs: dict[int, str] = {}
        self._reported: set[int] = set()
        # Unbuffered; a copy of descriptor 2 is the true standard error also where sys.stderr was replaced.
        sink: IO[bytes] = open(log_file or os.dup(2), "ab", buffering=0)  # noqa: SIM115 (closed by the log's thread)

        def launch() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                pass_fds=[descriptor],
                start_new_session=True,  # a group of its own: Ctrl-C in a terminal reaches this process only, once
            )

        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def run() -> None:
            with sink:
                try:
                    process = launch()
                except OSError as error:
                    started.put(error)
                    return
                started.put(process)
                assert process.stdout is not None
                self._read_log(process.stdout, sink)

        self._thread = threading.Thread(target=run, name="triton", daemon=True)
        self._thread.start()
        outcome = started.get()
        if isinstance(outcome, OSError):
            raise outcome
        self.process = outcome

    def listens(self, ports: Sequence[int]) -> bool:
        """Whether this very process listens on all the ports."""
        try:
            connections = psutil.Process(self.process.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return set(ports) <= {found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN}

    def killed_models(self) -> list[str]:
        """Model instances ("prepare_product_0_0") whose process has died since the last call.

        Triton notices only when it is asked for an inference, and does not replace it.
        """
        killed = []
        with contextlib.suppress(psutil.NoSuchProcess):  # Triton has ended
            children = {child.pid: child for child in psutil.Process(self.process.pid).children()}
            self._stubs = {pid: name for pid, name in self._stubs.items() if pid in children}
            for pid, child in children.items():
                with contextlib.suppress(psutil.Error, IndexError):
                    if child.status() == psutil.STATUS_ZOMBIE:
                        if pid in self._stubs and pid not in self._reported:
                            self._reported.add(pid)
                            killed.append(self._stubs[pid])
                    elif pid not in self._stubs and child.name() == "triton_python_backend_stub":
                        self._stubs[pid] = child.cmdline()[8]
        return killed

    def end(self, grace_seconds: float) -> int:
        """Let requests under way finish (at most `grace_seconds`), then end it. Returns 0 when all of them did."""
        if self.process.poll() is None and grace_seconds > 0:
            self.process.terminate()
            self._wait_for_end(grace_seconds)
        self.kill()
        self._thread.join(timeout=5)
        return 0 if self._drained.is_set() else self.process.returncode

    def kill(self) -> None:
        """End Triton and its stubs at once (SIGKILL to their process group)."""
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ChildProcessError):  # as the first process of a container, this one inherits the stubs
            while True:
                os.waitpid(-self.process.pid, 0)

    def how_it_ended(self) -> str:
        """ "with status 1", "by SIGABRT", for one that has ended."""
        self._thread.join(timeout=5)
        status = self.process.returncode
        return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"

    def log_excerpt(self) -> str:
        """What Triton's log says about a failure: the reason for each model, else its errors, else its last lines."""
        return excerpt(list(self._log))

    def _wait_for_end(self, grace_seconds: float) -> None:
        """Wait until Triton has ended, until its time is up, or until it has nothing left to do and does not end.

        The last happens with the gRPC front end of 24.10: a request whose client gave up at the wrong moment is
        answered but never released, and its model is never unloaded.
        """
        deadline = time.monotonic() + grace_seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            if self._drained.is_set() and time.monotonic() > self._last_unload + UNLOAD_SECONDS:
                return

    def _read_log(self, source: IO[bytes], sink: IO[bytes]) -> None:
        for line in source:
            text = line.decode(errors="replace").rstrip("\n")
            self._log.append(text)
            if DRAINED in text or UNLOADED in text:
                self._last_unload = time.monotonic()
            if DRAINED in text:
                self._drained.set()
            with contextlib.suppress(OSError):  # a full disk or a closed terminal must not stop the server
                sink.write(line)


def excerpt(lines: Sequence[str]) -> str:
    """The lines of a Triton log that explain a failed start or a crash."""
    lines = [line for line in lines if not any(harmless in line for harmless in HARMLESS)]
    messages: list[list[str]] = []
    for line in lines:
        if LOG_LINE.match(line) or not messages or re.match(r"terminate called|Signal \(|\s+what\(\)", line):
            messages.append([line])
        else:
            messages[-1].append(line)  # a traceback, a table: part of the message before
    errors = ["\n".join(message) for message in messages if not re.match(r"[IW]\d{4} ", message[0])]
    failures: dict[str, str] = {}
    for error in errors:
        failed = FAILED_MODEL.search(error)
        if failed:
            reason = failed["reason"].strip().strip('"').replace("\\n", "\n").strip()
            failures.setdefault(failed["model"], reason)
    if failures:
        return "\n".join(f"{model}: {reason}" for model, reason in failures.items())
    return "\n".join(errors[-10:] or lines[-20:])
