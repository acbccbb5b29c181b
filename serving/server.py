"""A real Triton server as a context manager, and in the foreground for `shelfwise serve`.

What Triton leaves open is closed here: the server listens on localhost unless told otherwise, the protocols that change
a running server (model repository, trace, logging) are gated unless asked for, start-up failures are raised with the
lines of Triton's log that say which model failed and why, and "ready" means that every ensemble has answered a true
inference. Stopping lets in-flight requests finish. Each server's shared memory has its own prefix, held by a lock for
as long as any of its processes lives: what a killed server left in /dev/shm is recognised, and removed by the next one.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, NoReturn

import grpc

from repository import plans
from repository.configs import RepositoryError, is_ensemble, model_configs
from repository.publish import serve_through
from repository.release import current, verify
from serving import readiness
from serving.environment import (
    ServerEnvironment,
    check_ports,
    check_shared_memory,
    free_ports,
    lay_out_backends,
    server_environment,
)

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_PREFIX = "shelfwise-"
# The protocols that change a running server or show what lies on its disk.
CONTROL_PROTOCOLS = "model-repository,trace,logging"
LOG_LINE = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d")
FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version (?P<version>\d+): (?P<reason>.*)", re.DOTALL)
# What Triton says once no request is under way any more, what it says of each model that it unloads then, and how long
# one may take: stubs need about a second.
DRAINED = "All models are stopped, unloading models"
UNLOADED = "successfully unloaded '"
UNLOAD_SECONDS = 5.0
WATCH_SECONDS = 1.0
KEPT_LOG_LINES = 2000


class ServerError(RuntimeError):
    """The server did not start, or ended by itself."""


class StartupError(ServerError):
    """Triton ended or did not become ready; the message holds the lines of its log that say why."""


class TritonServer:
    """Triton on one repository, for as long as the context lasts.

    ```
    with TritonServer(repository) as server:
        ShelfwiseClient(server.url)
    ```

    Arguments: `repository` of releases, whose current one is served, or a plain folder in Triton's layout; `host` and the three ports to listen on (0 picks a free port);
    `log_file` where Triton's log goes (appended; None: stderr); `model_control` allows loading and unloading models and
    reading the repository over the network, which is meant for development; `grace_seconds` how long a stop waits for
    in-flight requests; `start_timeout` how long a start may take, in seconds; `triton_options` go to tritonserver as
    they are: TLS (--grpc-use-ssl=true, --grpc-server-cert, --grpc-server-key), protocols gated by a header
    (--grpc-restricted-protocol), rate limits; `environment` what runs it (default:
    `serving.environment.server_environment()`).
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log_file: Path | None = None,
        model_control: bool = False,
        grace_seconds: float = 30.0,
        start_timeout: float = 180.0,
        triton_options: Sequence[str] = (),
        environment: ServerEnvironment | None = None,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.release: Path | None = None  # the folder that is served, known from the start on
        self.host = host
        self.http_port, self.grpc_port, self.metrics_port = http_port, grpc_port, metrics_port
        self.log_file = log_file
        self.model_control = model_control
        self.grace_seconds = grace_seconds
        self.start_timeout = start_timeout
        self.triton_options = tuple(triton_options)
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self._run_folder: Path | None = None
        self._shared_memory_lock: SharedMemoryLock | None = None
        self._log_pump: threading.Thread | None = None
        self._log: collections.deque[str] = collections.deque(maxlen=KEPT_LOG_LINES)
        self._drained = threading.Event()
        self._last_unload = 0.0
        self._stubs: dict[int, str] = {}

    @property
    def url(self) -> str:
        """The gRPC address to give to a client, e.g. "127.0.0.1:8001"."""
        return f"{self._client_host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{self._client_host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._client_host}:{self.metrics_port}/metrics"

    @property
    def _client_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )

    def __enter__(self) -> TritonServer:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop(grace_seconds=0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start Triton and wait until all models are loaded.

        Raises a ServerEnvironmentError for what the machine lacks, RepositoryError for a repository without models or
        whose files changed, and
        StartupError when Triton ends or takes longer than `start_timeout`.
        """
        if self.process is not None:
            raise RuntimeError("this server was already started; make a new TritonServer to start another")
        release = self.release = current(self.repository)
        verify(release)
        instances = count_instances(release)
        refuse_plans(release)
        environment = self.environment or server_environment()
        self._choose_ports()
        check_ports(self.host, {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port})
        remove_abandoned_shared_memory()
        check_shared_memory(instances)
        try:
            self._shared_memory_lock = SharedMemoryLock()
            temporary = tempfile.gettempdir()
            self._run_folder = Path(
                tempfile.mkdtemp(prefix="shelfwise-server-", dir=temporary if is_unquoted(temporary) else "/tmp")
            )
            self._launch(environment, self._run_folder, self._shared_memory_lock)
            self._wait_until_loaded()
            self._stubs = _stub_processes(self.process.pid) if self.process else {}
        except BaseException:
            self.stop(grace_seconds=0)
            raise

    def wait_until_ready(
        self,
        timeout: float = 60.0,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Send one true inference through every ensemble; returns their names. Raises readiness.NotReady.

        `credentials` and `headers` are what a caller needs when `triton_options` ask for TLS or gate the protocols.
        """
        return readiness.check(
            self.url, self.release or self.repository, timeout, credentials=credentials, headers=headers
        )

    def stop(self, grace_seconds: float | None = None) -> int | None:
        """Let in-flight requests finish (at most `grace_seconds`), end Triton and clean up after it.

        Returns 0 when all of them finished, Triton's exit status otherwise; None when it never ran. Stopping twice does
        no harm.
        """
        grace = self.grace_seconds if grace_seconds is None else grace_seconds
        process = self.process
        if process is not None:
            if process.poll() is None and grace > 0:
                process.terminate()
                self._wait_for_end(process, grace)
            self.kill()
        if self._log_pump is not None:
            self._log_pump.join(timeout=5)
        if self._shared_memory_lock is not None:
            self._shared_memory_lock.release()
            self._shared_memory_lock = None
        if self._run_folder is not None:
            shutil.rmtree(self._run_folder, ignore_errors=True)
            self._run_folder = None
        if process is None:
            return None
        return 0 if self._drained.is_set() else process.returncode

    def _wait_for_end(self, process: subprocess.Popen[bytes], grace_seconds: float) -> None:
        """Wait until Triton has ended, until its time is up, or until it has nothing left to do and does not end.

        The last happens with the gRPC front end of 24.10: a request whose client gave up at the wrong moment is
        answered but never released, and its model is never unloaded.
        """
        deadline = time.monotonic() + grace_seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            if self._drained.is_set() and time.monotonic() > self._last_unload + UNLOAD_SECONDS:
                return

    def kill(self) -> None:
        """End Triton and its stubs at once (SIGKILL to their process group)."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def killed_models(self) -> list[str]:
        """Model instances ("prepare_product_0_0") whose process has died: Triton neither reaps nor replaces it."""
        if self.process is not None:
            with contextlib.suppress(OSError):  # Triton has ended
                self._stubs |= _stub_processes(self.process.pid)  # those of models that were loaded since
        return [name for pid, name in self._stubs.items() if _process_state(pid) == "Z"]

    def log_excerpt(self) -> str:
        """What Triton's log says about a failure: the reason for each model, else its errors, else its last lines."""
        return excerpt(list(self._log))

    def _choose_ports(self) -> None:
        wanted = [self.http_port, self.grpc_port, self.metrics_port]
        free = iter(free_ports(self.host, wanted.count(0)))
        self.http_port, self.grpc_port, self.metrics_port = (port or next(free) for port in wanted)

    def _launch(self, environment: ServerEnvironment, folder: Path, shared_memory: SharedMemoryLock) -> None:
        assert self.release is not None
        repository, name = self.release, f"{socket.gethostname()}-{self.grpc_port}"
        if self.model_control and repository != self.repository:
            repository = serve_through(self.repository, name, self.release)
        if not is_unquoted(str(repository)):
            (folder / "models").symlink_to(repository)
            repository = folder / "models"
        backends = lay_out_backends(environment, folder / "backends")
        command = self._command(environment, repository, backends, shared_memory.prefix)
        command.append(f"--id={name}")  # by which a roll-out finds the link
        command += self.triton_options
        # Unbuffered; a copy of descriptor 2 is the true standard error also where sys.stderr was replaced.
        log: IO[bytes] = open(self.log_file or os.dup(2), "ab", buffering=0)  # noqa: SIM115 (closed by the log's thread)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment.process_environment(),
            cwd=folder,
            pass_fds=[shared_memory.descriptor],
            start_new_session=True,  # a group of its own: Ctrl-C in a terminal reaches this process only, once
        )
        self._log_pump = threading.Thread(
            target=self._pump_log, args=(self.process.stdout, log), name="triton-log", daemon=True
        )
        self._log_pump.start()

    def _command(
        self, environment: ServerEnvironment, repository: Path, backends: Path, shared_memory_prefix: str
    ) -> list[str]:
        command = [
            str(environment.tritonserver),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={environment.caches}",
            f"--http-address={self.host}",
            f"--http-port={self.http_port}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
            "--allow-gpu-metrics=false",  # it needs DCGM, which pip does not bring
            "--strict-readiness=true",
            "--exit-on-error=true",
            f"--exit-timeout-secs={max(1, round(self.grace_seconds))}",
            # These hold for our onnxruntime backend too: it runs on the Python backend.
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            f"--backend-config=python,stub-timeout-seconds={max(1, round(self.start_timeout))}",
        ]
        if self.model_control:
            command += ["--model-control-mode=explicit", "--load-model=*"]
        else:
            command.append("--model-control-mode=none")
        if not self.model_control:
            key = secrets.token_hex(16)  # known to nobody: there is no header that opens these protocols
            command += [
                f"--grpc-restricted-protocol={CONTROL_PROTOCOLS}:shelfwise-control={key}",
                f"--http-restricted-api={CONTROL_PROTOCOLS}:shelfwise-control={key}",
            ]
        return command

    def _pump_log(self, source: IO[bytes], sink: IO[bytes]) -> None:
        for line in source:
            text = line.decode(errors="replace").rstrip("\n")
            self._log.append(text)
            if DRAINED in text or UNLOADED in text:
                self._last_unload = time.monotonic()
            if DRAINED in text:
                self._drained.set()
            with contextlib.suppress(OSError):  # a full disk or a closed terminal must not stop the server
                sink.write(line)
        sink.close()

    def _wait_until_loaded(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.start_timeout
        while not self._loaded():
            if self.process.poll() is not None:
                assert self._log_pump is not None
                self._log_pump.join(timeout=5)
                raise StartupError(
                    f"tritonserver ended with status {self.process.returncode} while loading {self.repository}:\n"
                    f"{self.log_excerpt()}"
                )
            if time.monotonic() > deadline:
                raise StartupError(
                    f"tritonserver did not load {self.repository} within {self.start_timeout:g} s; its log ends:\n"
                    f"{self.log_excerpt()}"
                )
            time.sleep(0.05)

    def _loaded(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False


def _stub_processes(triton: int) -> dict[int, str]:
    """Triton's child processes for Python models: process id -> name of the model instance, its ninth argument."""
    names = {}
    for task in Path(f"/proc/{triton}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a process that ended meanwhile
            for pid in map(int, (task / "children").read_text().split()):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if arguments[0].endswith(b"triton_python_backend_stub"):
                    names[pid] = arguments[8].decode()
    return names


def _process_state(pid: int) -> str:
    """The state letter of a process as in ps ("S", "R", "Z" …), "" when there is none of that id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


class SharedMemoryLock:
    """The prefix of one server's regions in /dev/shm, and the lock that says that one of its processes still lives.

    The lock is a flock on `/dev/shm/<prefix>lock`; Triton and its stubs inherit the open file, and with it the lock.
    """

    def __init__(self) -> None:
        self.prefix = f"{SHARED_MEMORY_PREFIX}{secrets.token_hex(6)}-"
        self.path = SHARED_MEMORY / f"{self.prefix}lock"
        self.descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        """Remove the server's regions and the lock. All its processes must have ended."""
        _remove_regions(self.prefix)
        os.close(self.descriptor)


def remove_abandoned_shared_memory() -> list[str]:
    """Remove the regions of servers that no longer run (killed, crashed). Returns their prefixes."""
    removed = []
    for path in SHARED_MEMORY.glob(f"{SHARED_MEMORY_PREFIX}*-lock"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue  # another user's, or removed a moment ago
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its server lives
        else:
            prefix = path.name.removesuffix("lock")
            _remove_regions(prefix)
            removed.append(prefix)
        finally:
            os.close(descriptor)
    return removed


def _remove_regions(prefix: str) -> None:
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def is_unquoted(path: str) -> bool:
    """Whether a path means itself to a shell: Triton starts stubs through `bash -c` and does not quote their paths."""
    return re.fullmatch(r"[\w@%+=:,./-]+", path, re.ASCII) is not None


def count_instances(repository: Path) -> int:
    """How many processes Triton will start for a repository's Python and ONNX models.

    Raises RepositoryError when a configuration cannot be read.
    """
    count = 0
    for config in model_configs(repository):
        if is_ensemble(config):
            continue
        onnx = bool(list((repository / config.name).glob("*/model.onnx")))
        # Triton's default: two instances of an ONNX model on a CPU, one of any other.
        count += sum(group.count or 1 for group in config.instance_group) or (2 if onnx else 1)
    return count


def refuse_plans(repository: Path) -> None:
    """Refuse TensorRT plans that this machine cannot run, with what they were built for. Raises RepositoryError."""
    try:
        reasons = plans.repository_refusals(repository)
    except ValueError as error:
        raise RepositoryError(str(error)) from None
    if reasons:
        raise RepositoryError("; ".join(f"{model}: {reason}" for model, reason in reasons.items()))


def excerpt(lines: Sequence[str]) -> str:
    """The lines of a Triton log that explain a failed start."""
    messages: list[list[str]] = []
    for line in lines:
        if LOG_LINE.match(line) or not messages:
            messages.append([line])
        else:
            messages[-1].append(line)  # a traceback, a table: part of the message before
    errors = ["\n".join(message) for message in messages if re.match(r"[EF]\d{4} ", message[0])]
    failures: dict[str, str] = {}
    for error in errors:
        failed = FAILED_MODEL.search(error)
        if failed:
            reason = failed["reason"].strip().strip('"').replace("\\n", "\n").strip()
            failures.setdefault(failed["model"], reason)
    if failures:
        return "\n".join(f"{model}: {reason}" for model, reason in failures.items())
    return "\n".join(errors[-10:] or lines[-20:])


def serve(
    server: TritonServer,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Run a server in the foreground until it is told to stop. Returns the exit status.

    SIGTERM and SIGINT let in-flight requests finish; a second one ends the server at once. When the server is ready,
    its addresses and a table of the ensembles are printed to stdout. `credentials` and `headers` as in
    `TritonServer.wait_until_ready`. Raises what TritonServer.start and wait_until_ready raise, and ServerError when
    Triton ends by itself or the process of a model was killed: Triton would go on answering errors for that model, a
    supervisor can start the server again.
    """
    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            server.kill()
            return
        stopping = True
        raise _StopRequested

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        ensembles = server.wait_until_ready(credentials=credentials, headers=headers)
        _print_ready(server, ensembles)
        _watch(server)
    except _StopRequested:
        print(f"Stopping: in-flight requests have {server.grace_seconds:g} s to finish.", file=sys.stderr, flush=True)
    finally:
        stopping = True
        status = server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status or 0


def _watch(server: TritonServer) -> NoReturn:
    """Wait for the end of a running server, or of one of its model processes."""
    assert server.process is not None
    while server.process.poll() is None:
        time.sleep(WATCH_SECONDS)
        killed = server.killed_models()
        if killed:
            raise ServerError(
                f"the process of {', '.join(killed)} was killed; stopping, since Triton does not replace it"
            )
    raise ServerError(f"tritonserver ended by itself with status {server.process.returncode}:\n{server.log_excerpt()}")


class _StopRequested(BaseException):
    """Raised out of whatever the main thread waits for when a signal asks to stop."""


def _print_ready(server: TritonServer, ensembles: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("ensemble", "inputs", "outputs", title=f"Serving {server.release}", title_justify="left")
    for config in model_configs(server.release or server.repository):
        if config.name in ensembles:
            table.add_row(config.name, _tensors(config.input), _tensors(config.output))
    console = Console()
    console.print(table)
    console.print(f"gRPC {server.url}   HTTP {server.http_url}   metrics {server.metrics_url}", highlight=False)
    console.file.flush()


def _tensors(tensors: Sequence[Any]) -> str:
    return ", ".join(f"{tensor.name} {readiness.type_name(tensor)}{list(tensor.dims)}" for tensor in tensors)
