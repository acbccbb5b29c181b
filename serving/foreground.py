"""`shelfwise serve`: a server in the foreground that needs nobody.

SIGTERM, SIGINT and a closed terminal stop it gracefully; what dies under it, Triton or the process of one Python model,
is started again, a bounded number of times, after which a supervisor is told by the exit status. It can be the first
process of a container.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from repository.configs import model_configs
from serving import readiness
from serving.server import ServerError, TritonServer

WATCH_SECONDS = 1.0
# A server that dies more often than this has a reason that starting again does not remove.
RESTARTS, RESTART_WINDOW_SECONDS = 3, 600.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(server: TritonServer, lame_duck_seconds: float = 0.0) -> int:
    """Run a server in the foreground until it is told to stop. Returns the exit status.

    The first signal to stop turns the readiness probes of this machine red, lets the server answer as before for
    `lame_duck_seconds`, in which load balancers take it out, and then lets in-flight requests finish; a second signal
    ends it at once. When the server is ready, its addresses and a table of the ensembles are printed to stdout. Raises
    what TritonServer.start and wait_until_ready raise, and ServerError when Triton or a model died too often.
    """
    with _stop_signals(server):
        try:
            server.start()
            _print_ready(server, server.wait_until_ready())
            _supervise(server)
        except _StopRequested:
            server.announce_stop()
            if lame_duck_seconds and server.triton is not None:
                _say(f"Stopping in {lame_duck_seconds:g} s; readiness is red, requests are still answered.")
                _wait_for_end(server, lame_duck_seconds)
            _say(f"Stopping: in-flight requests have {server.grace_seconds:g} s to finish.")
        finally:
            status = server.stop()
    return status or 0


def _supervise(server: TritonServer) -> None:
    """Watch a running server and start again what died; ends with an exception only."""
    restarts: deque[float] = deque(maxlen=RESTARTS)
    while True:
        time.sleep(WATCH_SECONDS)
        assert server.triton is not None
        killed = sorted({instance.rsplit("_", 2)[0] for instance in server.triton.killed_models()})
        if server.triton.process.poll() is not None:
            what = f"tritonserver ended {server.triton.how_it_ended()}:\n{server.triton.log_excerpt()}"
        elif killed:
            what = f"the process of {', '.join(killed)} was killed"
        else:
            continue
        if len(restarts) == RESTARTS and time.monotonic() - restarts[0] < RESTART_WINDOW_SECONDS:
            raise ServerError(f"{what}; stopping after {RESTARTS} restarts in {RESTART_WINDOW_SECONDS:g} s")
        restarts.append(time.monotonic())
        if server.model_control and killed and server.triton.process.poll() is None:
            _say(f"{what}; loading it again, the other models go on")
            server.reload(killed)
            for model in killed:
                server.wait_until_ready(model=model)
        else:
            _say(f"{what}; starting again")
            server.restart()
            server.wait_until_ready()
        _say("ready again")


@contextlib.contextmanager
def _stop_signals(server: TritonServer) -> Iterator[None]:
    """The first stop signal raises _StopRequested out of whatever the main thread does, a second one kills Triton."""
    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            server.kill()
            return
        stopping = True
        raise _StopRequested

    # SIGHUP stays ignored under nohup.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        yield
    finally:
        stopping = True
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_for_end(server: TritonServer, seconds: float) -> None:
    """Wait so long, or until Triton has ended, which a second signal brings about."""
    assert server.triton is not None
    deadline = time.monotonic() + seconds
    while server.triton.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


class _StopRequested(BaseException):
    """Raised out of whatever the main thread waits for when a signal asks to stop."""


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(message, file=sys.stderr, flush=True)


def _print_ready(server: TritonServer, ensembles: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("ensemble", "inputs", "outputs", title=f"Serving {server.release}", title_justify="left")
    for config in model_configs(server.release or server.repository):
        if config.name in ensembles:
            table.add_row(config.name, _tensors(config.input), _tensors(config.output))
    http = f"HTTP {server.http_url}   " if server.http_port is not None else ""
    console = Console()
    with contextlib.suppress(OSError):
        console.print(table)
        console.print(f"gRPC {server.url}   {http}metrics {server.metrics_url}", highlight=False)
        console.file.flush()


def _tensors(tensors: Sequence[Any]) -> str:
    return ", ".join(f"{tensor.name} {readiness.type_name(tensor)}{list(tensor.dims)}" for tensor in tensors)
