"""`shelfwise serve` in a process of its own: signals, accidents that need nobody, two servers on one port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from serving import readiness
from serving.addresses import free_ports
from serving.server import TritonServer
from serving.shared_memory import FOLDER, remove_abandoned
from tests.serving.graphs import ROOT, save_python
from tests.serving.models import SLEEPER_CONFIG, pass_gate, sleep, stubs, write_gatekeeper, write_sleeper
from tests.triton_state import wait_for


@dataclass
class Foreground:
    """A running `shelfwise serve`, and what it has printed so far, line by line."""

    process: subprocess.Popen[str]
    repository: Path
    printed: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return next(line.split()[1] for line in self.printed if line.startswith("gRPC "))

    def says(self, text: str) -> bool:
        return any(text in line for line in self.printed)

    def wait(self) -> int:
        return self.process.wait(30)

    def triton(self) -> psutil.Process:
        return next(c for c in psutil.Process(self.process.pid).children() if c.name() == "tritonserver")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Foreground]]:
    """Starts `shelfwise serve` on a repository with the arguments, and waits until it says that it is ready."""
    started: list[Foreground] = []

    def start(repository: Path, *arguments: str, environment: dict[str, str] | None = None) -> Foreground:
        command = [
            sys.executable,
            "shelfwise.py",
            "serve",
            "--repository",
            str(repository),
            "--grace",
            "10",
            *arguments,
        ]
        if "--grpc-port" not in arguments:
            command += ["--grpc-port", "0", "--metrics-port", "0"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server = Foreground(process, repository)
        started.append(server)

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                server.printed.append(line)

        threading.Thread(target=read, daemon=True).start()
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def ready(server: Foreground) -> Foreground:
    wait_for(lambda: server.says("gRPC ") or server.process.poll() is not None, 60)
    assert server.says("gRPC "), "".join(server.printed)
    return server


def test_prints_the_addresses_and_ends_with_status_0_on_sigterm(
    serve: Callable[..., Foreground], tmp_path: Path
) -> None:
    server = ready(serve(write_sleeper(tmp_path)))
    assert all(server.says(text) for text in ("rest", "seconds FP32[1]", "slept FP32[1]"))
    assert not server.says("HTTP http")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.says("in-flight requests have 10 s to finish")


def test_closed_terminal_stops_it(serve: Callable[..., Foreground], tmp_path: Path) -> None:
    server = ready(serve(write_sleeper(tmp_path)))
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGHUP)
    assert server.wait() == 0
    assert not any(process.is_running() for process in processes)


def test_lame_duck_answers_while_readiness_is_red(serve: Callable[..., Foreground], tmp_path: Path) -> None:
    server = ready(serve(write_gatekeeper(tmp_path / "repository", tmp_path / "open"), "--lame-duck", "600"))
    readiness.check(server.url, server.repository)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.says("Stopping in 600 s"))
    with pytest.raises(readiness.NotReady, match="about to stop"):
        readiness.check(server.url, server.repository)
    pass_gate(server, tmp_path / "open")
    server.process.send_signal(signal.SIGTERM)  # a second one is for now
    server.wait()


def test_killed_serve_takes_triton_and_its_stubs_along_and_the_next_start_works(
    serve: Callable[..., Foreground], tmp_path: Path
) -> None:
    repository = write_gatekeeper(tmp_path / "repository", tmp_path / "open")
    ports = free_ports("127.0.0.1", 2)
    arguments = ["--grpc-port", str(ports[0]), "--metrics-port", str(ports[1])]
    server = ready(serve(repository, *arguments))
    processes = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as callers:
        callers.submit(pass_gate, server, tmp_path / "held")  # a stub that is at work when its Triton dies
        wait_for((tmp_path / "held.entered").exists)
        server.process.kill()
        _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    readiness.check(ready(serve(repository, *arguments)).url, repository)


def test_orphans_are_ended_by_the_next_start_and_living_servers_are_not(tmp_path: Path) -> None:
    # A Triton that holds a lock of ours, but is not tied to the process that started it.
    program = (
        "import subprocess, sys; from serving.environment import server_environment;"
        "from serving.shared_memory import ServerLock; lock = ServerLock(0); environment = server_environment();"
        "command = [str(environment.tritonserver), '--model-control-mode=explicit', '--allow-http=false',"
        "'--allow-metrics=false', '--grpc-address=127.0.0.1', *sys.argv[1:]];"
        "triton = subprocess.Popen(command, env=environment.process_environment(), pass_fds=[lock.descriptor]);"
        "print(triton.pid, lock.prefix, flush=True); input()"
    )
    (port,) = free_ports("127.0.0.1", 1)
    command = [sys.executable, "-c", program, f"--model-repository={tmp_path}", f"--grpc-port={port}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        pid, prefix = process.stdout.readline().split()
        triton = psutil.Process(int(pid))
        assert prefix not in remove_abandoned(), "a living server's"
        assert triton.is_running()
        process.kill()
    assert list(FOLDER.glob(f"{prefix}*"))
    assert triton.is_running()
    assert prefix in remove_abandoned()
    assert not list(FOLDER.glob(f"{prefix}*"))
    assert not triton.is_running()


def test_what_dies_is_started_again(serve: Callable[..., Foreground], tmp_path: Path) -> None:
    server = ready(serve(write_sleeper(tmp_path), "--log-file", str(tmp_path / "log")))
    url = server.url
    next(child for child in server.triton().children() if "stub" in child.name()).kill()
    wait_for(lambda: server.says("ready again"), 60)
    assert server.says("the process of sleeper was killed; starting again")
    assert readiness.check(url, server.repository) == ["rest"]
    server.printed.clear()
    server.triton().send_signal(signal.SIGABRT)
    wait_for(lambda: server.says("ready again"), 60)
    assert server.says("tritonserver ended by SIGABRT")
    assert not server.says("CudaDriverHelper"), "what has nothing to do with it"
    assert readiness.check(url, server.repository) == ["rest"]
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_killed_model_is_replaced_alone_where_models_may_be_loaded(
    serve: Callable[..., Foreground], tmp_path: Path
) -> None:
    write_gatekeeper(tmp_path / "repository", tmp_path / "open")
    server = ready(serve(write_sleeper(tmp_path / "repository"), "--model-control"))
    with ThreadPoolExecutor(1) as callers:
        held = callers.submit(pass_gate, server, tmp_path / "held")  # a request of another ensemble, all the while
        wait_for((tmp_path / "held.entered").exists)
        triton = server.triton().pid
        next(child for child in server.triton().children() if "sleeper_0_1" in child.cmdline()).kill()
        wait_for(lambda: server.says("ready again"), 60)
        for _ in range(8):  # both instances
            sleep(server, 0.0)
        (tmp_path / "held.open").touch()
        held.result()
    assert server.triton().pid == triton


def test_gives_up_on_what_dies_again_and_again(serve: Callable[..., Foreground], tmp_path: Path) -> None:
    server = ready(serve(write_sleeper(tmp_path)))
    while server.process.poll() is None:
        for child in psutil.Process(server.process.pid).children():
            if child.name() == "tritonserver":
                child.kill()
        wait_for(lambda: server.process.poll() is not None or server.says("ready again"), 60)
        server.printed[:] = [line for line in server.printed if "ready again" not in line]
    assert server.process.returncode == 1


def test_two_on_one_port_one_serves_and_the_other_says_who_does(
    serve: Callable[..., Foreground], tmp_path: Path
) -> None:
    ports = free_ports("127.0.0.1", 2)
    arguments = ["--grpc-port", str(ports[0]), "--metrics-port", str(ports[1])]
    both = [serve(write_sleeper(tmp_path / name), *arguments) for name in ("a", "b")]
    wait_for(lambda: any(server.process.poll() is not None for server in both), 60)
    loser, winner = sorted(both, key=lambda server: server.process.poll() is None)
    assert loser.process.returncode == 1
    assert not loser.says("gRPC 127")
    assert loser.says("in use")
    ready(winner)
    late = serve(loser.repository, *arguments)
    assert late.wait() == 1
    assert late.says(f"in use by tritonserver (process {winner.triton().pid}, of process {winner.process.pid}")


def test_start_that_an_accident_ended_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = (
        "import os, signal\nfrom pathlib import Path\n"
        "class TritonPythonModel:\n    def initialize(self, args):\n"
        f"        marker = Path({str(tmp_path / 'aborted')!r})\n"
        "        if not marker.exists():\n"
        "            marker.touch(); os.kill(os.getppid(), signal.SIGABRT)\n"
        "    def execute(self, requests): return []\n"
    )
    save_python(tmp_path / "repository", "accident", source, SLEEPER_CONFIG.replace("count: 2", "count: 1"))
    with TritonServer(tmp_path / "repository", grpc_port=0, metrics_port=0, log_file=tmp_path / "log") as server:
        assert stubs(server)
    assert re.search(r"tritonserver ended by SIGABRT .*\n(.*\n)*starting it again \(2 of 3\)", caplog.text)


def test_proxies_are_not_asked_for_loopback(serve: Callable[..., Foreground], tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), nowhere)
    server = ready(serve(write_sleeper(tmp_path), "--host", "localhost", environment=proxies))
    command = [sys.executable, "shelfwise.py", "ready", "--url", server.url, "--repository", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, env=os.environ | proxies, check=False).returncode == 0


def test_ipv6_is_listened_on(tmp_path: Path) -> None:
    options = {"grpc_port": 0, "metrics_port": 0, "log_file": tmp_path / "log"}
    with TritonServer(write_sleeper(tmp_path / "repository"), host="[::1]", **options) as server:
        assert sleep(server, 0.0) == 0.0
        assert server.url.startswith("[::1]:")
