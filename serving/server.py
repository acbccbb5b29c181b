"""A real Triton server on one model repository, as a context manager.

What Triton leaves open is closed here: the server listens on localhost and over gRPC alone unless told otherwise; the
protocols that change a running server (model repository, trace, logging) or hand it memory to read and write (shared
memory) are gated unless asked for. A start that an accident ended is tried again; one that failed is raised with the
lines of Triton's log that say which model failed and why. "Ready" means that every ensemble has answered a true
inference.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import grpc
from tritonclient.utils import InferenceServerException

from repository import plans
from repository.configs import RepositoryError, is_ensemble, model_configs
from repository.publish import serve_through
from repository.release import current, verify
from serving import readiness
from serving.addresses import check_ports, free_ports, resolve, url_host
from serving.environment import (
    ServerEnvironment,
    ServerEnvironmentError,
    check_shared_memory,
    lay_out_backends,
    server_environment,
)
from serving.shared_memory import ServerLock, remove_abandoned
from serving.triton import Triton

# Protocols that change a running server or show what lies on its disk, and those that make it map a caller's memory
# (the first step of CVE-2025-23319 and its kin, which every Triton on pip has).
CONTROL_PROTOCOLS = ("model-repository", "trace", "logging")
SHARED_MEMORY_PROTOCOL = "shared-memory"
# A start can meet an accident: Triton 24.10 aborts (boost::interprocess::lock_exception) when a stub is slow to answer
# on a busy machine, and a free port can be taken between being found and being listened on.
START_ATTEMPTS = 3
PORT_TAKEN = "already in use"

logger = logging.getLogger(__name__)


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

    Arguments: `repository` of releases, whose current one is served, or a plain folder in Triton's layout; `host` to
    listen on, an address or a name; the ports of gRPC,
    of metrics and of HTTP (0 picks a free one; HTTP None, the default, stays closed: a nested JSON body of 200 bytes
    kills any Triton before May 2026); `log_file` where Triton's log goes (appended; None: stderr); `model_control`
    allows loading and unloading models and reading the repository over the network, and replaces the process of a
    Python model alone when it was killed; `shared_memory` allows callers to register regions of it; `grace_seconds` how
    long a stop waits for in-flight requests; `start_timeout` how long a start may take, in seconds; `triton_options` go
    to tritonserver as they are: TLS (--grpc-use-ssl=true, --grpc-server-cert, --grpc-server-key), protocols gated by a
    header (--grpc-restricted-protocol), rate limits; `credentials` and `headers` are what a caller needs then, and with
    it the check of readiness; `environment` what runs it (default: `serving.environment.server_environment()`).
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        http_port: int | None = None,
        log_file: Path | None = None,
        model_control: bool = False,
        shared_memory: bool = False,
        grace_seconds: float = 30.0,
        start_timeout: float = 180.0,
        triton_options: Sequence[str] = (),
        credentials: grpc.ChannelCredentials | None = None,
        headers: Mapping[str, str] | None = None,
        environment: ServerEnvironment | None = None,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.release: Path | None = None  # the folder that is served, known from the start on
        self.host = host
        self.grpc_port, self.metrics_port, self.http_port = grpc_port, metrics_port, http_port
        self.log_file = log_file
        self.model_control, self.shared_memory = model_control, shared_memory
        self.grace_seconds = grace_seconds
        self.start_timeout = start_timeout
        self.triton_options = tuple(triton_options)
        self.credentials, self.headers = credentials, headers
        self.environment = environment
        self.triton: Triton | None = None
        self._wanted = {"grpc": grpc_port, "metrics": metrics_port}
        if http_port is not None:
            self._wanted["http"] = http_port
        self._address = ""
        self._run_folder: Path | None = None
        self._lock: ServerLock | None = None

    @property
    def url(self) -> str:
        """The gRPC address to give to a client, e.g. "127.0.0.1:8001"."""
        return f"{url_host(self._address or resolve(self.host))}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{url_host(self._address or resolve(self.host))}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{url_host(self._address or resolve(self.host))}:{self.metrics_port}/metrics"

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The tritonserver that runs, or ran last."""
        return self.triton.process if self.triton else None

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
        """Start Triton and wait until all models are loaded; up to START_ATTEMPTS times where an accident ends it.

        Raises a ServerEnvironmentError for what the machine lacks, RepositoryError for a repository without models or
        whose files changed, and
        StartupError when Triton ends or takes longer than `start_timeout`.
        """
        if self.triton is not None:
            raise RuntimeError("this server was already started; make a new TritonServer to start another")
        release = current(self.repository)
        verify(release)
        instances = count_instances(release)
        refuse_plans(release)
        environment = self.environment or server_environment()
        self._address = resolve(self.host)
        for attempt in range(1, START_ATTEMPTS + 1):
            remove_abandoned()
            self._choose_ports()
            check_shared_memory(instances)
            try:
                self._launch(environment, release, attempt)
                self._wait_until_loaded()
                return
            except _Accident as accident:
                self.stop(grace_seconds=0)
                if attempt == START_ATTEMPTS:
                    raise StartupError(f"{accident} ({attempt} times in a row)") from None
                logger.warning("%s\nstarting it again (%d of %d)", accident, attempt + 1, START_ATTEMPTS)
            except BaseException:
                self.stop(grace_seconds=0)
                raise

    def wait_until_ready(self, timeout: float = 60.0, *, model: str | None = None) -> list[str]:
        """Send one true inference through every ensemble, or those that `model` is or is part of; returns their names.

        Raises readiness.NotReady.
        """
        return readiness.check(
            self.url,
            self.release or self.repository,
            timeout,
            model=model,
            credentials=self.credentials,
            headers=self.headers,
        )

    def restart(self) -> None:
        """End what is left of Triton and start it again on the same ports. Raises what `start` raises."""
        self.stop(grace_seconds=0)
        self.triton = None
        self._wanted |= {"grpc": self.grpc_port, "metrics": self.metrics_port}
        if self.http_port is not None:
            self._wanted["http"] = self.http_port
        self.start()

    def reload(self, models: Iterable[str]) -> None:
        """Have Triton load models anew while it goes on serving the others, and these from what is left of them.

        Needs `model_control`. Raises ServerError when Triton refuses.
        """
        with readiness.connect(self.url, self.credentials) as client:
            for model in models:
                try:
                    config = client.get_model_config(model, headers=self.headers, as_json=True)["config"]
                    # Triton keeps the processes of a model whose configuration is as it was.
                    config.setdefault("parameters", {})["loaded"] = {"string_value": secrets.token_hex(4)}
                    client.load_model(model, headers=self.headers, config=json.dumps(config))
                except InferenceServerException as error:
                    raise ServerError(f"{model} was not loaded anew: {error.message()}") from None

    def announce_stop(self) -> None:
        """Turn the readiness probes of this machine red; the server goes on answering."""
        if self._lock is not None:
            self._lock.announce_stop()

    def stop(self, grace_seconds: float | None = None) -> int | None:
        """Let in-flight requests finish (at most `grace_seconds`), end Triton and clean up after it.

        Returns 0 when all of them finished, Triton's exit status otherwise; None when it never ran. Stopping twice does
        no harm.
        """
        grace = self.grace_seconds if grace_seconds is None else grace_seconds
        status = self.triton.end(grace) if self.triton is not None else None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._run_folder is not None:
            shutil.rmtree(self._run_folder, ignore_errors=True)
            self._run_folder = None
        return status

    def kill(self) -> None:
        """End Triton and its stubs at once."""
        if self.triton is not None:
            self.triton.kill()

    def _choose_ports(self) -> None:
        free = iter(free_ports(self._address, list(self._wanted.values()).count(0)))
        ports = {purpose: port or next(free) for purpose, port in self._wanted.items()}
        check_ports(self._address, ports)
        self.grpc_port, self.metrics_port, self.http_port = ports["grpc"], ports["metrics"], ports.get("http")

    def _launch(self, environment: ServerEnvironment, release: Path, attempt: int) -> None:
        self._run_folder = folder = run_folder()
        self._lock = lock = ServerLock(self.grpc_port)
        name = f"{socket.gethostname()}-{self.grpc_port}"
        if self.model_control and release != self.repository:
            release = serve_through(self.repository, name, release)
        repository = self.release = release
        if not is_unquoted(str(repository)):
            (folder / "models").symlink_to(repository)
            repository = folder / "models"
        backends = environment.backends or lay_out_backends(environment, folder / "backends")
        command = self._command(environment, repository, backends, lock.prefix)
        command.append(f"--id={name}")  # by which a roll-out finds the link
        if attempt > 1:  # what aborts a start is stubs that start side by side on a busy machine
            command.append("--model-load-thread-count=1")
        self.triton = Triton(command, environment.process_environment(), folder, lock.descriptor, self.log_file)

    def _command(
        self, environment: ServerEnvironment, repository: Path, backends: Path, shared_memory_prefix: str
    ) -> list[str]:
        grpc_address = f"[{self._address}]" if ":" in self._address else self._address
        http_address = f"ipv6:{self._address}" if ":" in self._address else self._address
        command = [
            str(environment.tritonserver),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={environment.caches}",
            f"--grpc-address={grpc_address}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={http_address}",
            f"--metrics-port={self.metrics_port}",
            f"--allow-gpu-metrics={str(environment.backends is not None).lower()}",  # DCGM, which pip does not bring
            "--strict-readiness=true",
            "--exit-on-error=true",
            f"--exit-timeout-secs={max(1, round(self.grace_seconds))}",
            # These hold for our onnxruntime backend too: it runs on the Python backend.
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            f"--backend-config=python,stub-timeout-seconds={max(1, round(self.start_timeout))}",
        ]
        if self.http_port is None:
            command.append("--allow-http=false")
        else:
            command += [f"--http-address={http_address}", f"--http-port={self.http_port}"]
        if self.model_control:
            command += ["--model-control-mode=explicit", "--load-model=*"]
        else:
            command.append("--model-control-mode=none")
        gated = [] if self.model_control else [*CONTROL_PROTOCOLS]
        gated += [] if self.shared_memory else [SHARED_MEMORY_PROTOCOL]
        if gated:
            # A key that is told to nobody; whoever can read this command line is on this machine, where Triton is in
            # model control mode "none", or told so by its owner.
            gate = f"{','.join(gated)}:shelfwise-control={secrets.token_hex(16)}"
            command += [f"--grpc-restricted-protocol={gate}", f"--http-restricted-api={gate}"]
        return [*command, *self.triton_options]

    def _wait_until_loaded(self) -> None:
        """Triton listens when all its models are loaded, and on these ports it is this Triton that does."""
        assert self.triton is not None
        deadline = time.monotonic() + self.start_timeout
        ports = [port for port in (self.grpc_port, self.metrics_port, self.http_port) if port is not None]
        while not self.triton.listens(ports):
            if self.triton.process.poll() is not None:
                ended = f"tritonserver ended {self.triton.how_it_ended()} while loading {self.repository}"
                reason = self.triton.log_excerpt()
                taken = PORT_TAKEN in reason and 0 in self._wanted.values()
                kind = _Accident if self.triton.process.returncode < 0 or taken else StartupError
                raise kind(f"{ended}:\n{reason}")
            if time.monotonic() > deadline:
                raise StartupError(
                    f"tritonserver did not load {self.repository} within {self.start_timeout:g} s; its log ends:\n"
                    f"{self.triton.log_excerpt()}"
                )
            time.sleep(0.05)
        self.triton.killed_models()  # learns whose process is whose


class _Accident(StartupError):
    """Triton was killed by a signal while it loaded, or another process was faster to take a port."""


def run_folder() -> Path:
    """A new folder for the backends, whose libraries Triton maps. Raises ServerEnvironmentError where it cannot."""
    temporary = tempfile.gettempdir()
    parent = Path(temporary if is_unquoted(temporary) else "/tmp")
    refuse_noexec(parent)
    return Path(tempfile.mkdtemp(prefix="shelfwise-server-", dir=parent))


def refuse_noexec(folder: Path) -> None:
    """Refuse a folder whose files cannot be mapped as libraries. Raises ServerEnvironmentError."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ServerEnvironmentError(
            f"{folder} is mounted noexec, so that Triton cannot load its backends from there (failed to map segment "
            "from shared object); set TMPDIR to a folder on another file system"
        )


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
