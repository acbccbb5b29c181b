"""Starting, stopping and losing a real Triton: refusals before the start, in-flight requests, killed processes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

import shelfwise
from serving import readiness
from serving.addresses import AddressError, PortInUse, check_ports, free_ports
from serving.environment import (
    EnvironmentBuildError,
    LibpythonMissing,
    ServerEnvironmentError,
    SharedMemoryTooSmall,
    TritonMissing,
    check_libpython,
    check_shared_memory,
    lay_out_backends,
    locate,
    outdated,
    server_environment,
)
from serving.server import RepositoryError, StartupError, TritonServer, refuse_noexec
from serving.shared_memory import FOLDER
from tests.serving.conftest import connect
from tests.serving.graphs import save_onnx, save_python
from tests.serving.models import SLEEPER_CONFIG, sleep, stubs, write_sleeper
from tests.triton_state import wait_for


@pytest.fixture(scope="module")
def server(start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    repository = tmp_path_factory.mktemp("a folder with spaces; and more")
    return start_server(write_sleeper(repository))


# What is refused before Triton starts


def test_busy_port_is_refused_with_its_purpose_and_number(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        server = TritonServer(write_sleeper(tmp_path), grpc_port=port, metrics_port=0)
        with pytest.raises(PortInUse, match=f"grpc port {port} on 127.0.0.1 is in use .* --grpc-port"):
            server.start()
    assert server.process is None


def test_port_given_twice_is_refused() -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with pytest.raises(PortInUse, match=f"port {port} was given for both http and metrics"):
        check_ports("127.0.0.1", {"http": port, "metrics": port})


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1"):
        check_ports("192.0.2.1", {"http": free_ports("127.0.0.1", 1)[0]})


def test_missing_libpython_is_refused_with_what_to_install(tmp_path: Path) -> None:
    environment = server_environment()
    version = environment.stub.parent.name
    stub = tmp_path / version / environment.stub.name
    stub.parent.mkdir()
    # The real stub, asking for a library that no machine has.
    library, absent = f"libpython{version}.so.1.0".encode(), f"libpython{version}.so.9.9".encode()
    stub.write_bytes(environment.stub.read_bytes().replace(library, absent))
    stub.chmod(0o755)
    with pytest.raises(LibpythonMissing, match=f"{absent.decode()}.*apt-get install libpython{version}"):
        check_libpython(stub, environment.library_path)


def test_environment_without_triton_is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    assert any(requirement.startswith("nvidia-pytriton==") for requirement in outdated(tmp_path / "venv"))
    with pytest.raises(TritonMissing, match="does not hold nvidia-pytriton"):
        locate(tmp_path / "venv")


def test_a_folder_that_is_no_environment_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(EnvironmentBuildError, match="holds files and is no virtual environment"):
        server_environment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_installed_environment_is_up_to_date() -> None:
    assert outdated(server_environment().root) == []


def test_small_shared_memory_is_refused_with_figures_and_remedy() -> None:
    total = -(-shutil.disk_usage(FOLDER).total // 2**20)
    with pytest.raises(SharedMemoryTooSmall, match=rf"free of {total} MiB.*1000000 Python model .*--shm-size=\d+m"):
        check_shared_memory(1_000_000)


def test_missing_shared_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SharedMemoryTooSmall, match=r"does not exist.*mount -t tmpfs -o size=36m"):
        check_shared_memory(1, tmp_path / "shm")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("", "not ''"),
        ("no such host", "not 'no such host'"),
        ("255.255.255.255", "is not the address of one machine"),
        ("::2", "::2"),
    ],
)
def test_host_that_is_none_of_this_machine_is_refused(host: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=reason):
        TritonServer(write_sleeper(tmp_path), host=host, grpc_port=0, metrics_port=0).start()


def test_folder_without_execution_is_refused_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.statvfs("/proc").f_flag & os.ST_NOEXEC:
        pytest.skip("no file system here is mounted noexec")
    with pytest.raises(ServerEnvironmentError, match="set TMPDIR"):
        refuse_noexec(Path("/proc"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: None, "holds no model"),
        (lambda folder: save_python(folder, "broken", "", "max_batch_size: many"), "broken/config.pbtxt"),
    ],
    ids=["absent", "empty", "unreadable configuration"],
)
def test_repository_that_cannot_be_served_is_refused(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(RepositoryError, match=message):
        TritonServer(tmp_path).start()


def test_model_that_does_not_load_is_named_with_its_reason(tmp_path: Path) -> None:
    save_python(
        tmp_path,
        "careless",
        "class TritonPythonModel:\n    def initialize(self, args): raise ValueError('labels.txt is missing')\n",
        SLEEPER_CONFIG,
    )
    save_onnx(
        tmp_path,
        "damaged",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 4])},
    ).write_bytes(b"not a model")
    server = TritonServer(tmp_path, grpc_port=0, metrics_port=0, log_file=tmp_path / "log")
    with pytest.raises(StartupError) as raised:
        server.start()
    assert "careless: Internal: ValueError: labels.txt is missing" in str(raised.value)
    assert "Protobuf parsing failed" in str(raised.value)
    assert "damaged:" in str(raised.value)
    assert server.process is not None
    assert not psutil.pid_exists(server.process.pid)


# A running server


def test_readiness_is_a_true_inference_through_every_ensemble(server: TritonServer) -> None:
    assert server.wait_until_ready(10) == ["rest"]


def test_listens_on_localhost_only(server: TritonServer) -> None:
    assert server.process is not None
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for connection in psutil.Process(server.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", port) for port in (server.grpc_port, server.metrics_port)}


def test_metrics_are_served(server: TritonServer) -> None:
    sleep(server, 0.0)
    with urllib.request.urlopen(server.metrics_url, timeout=5) as response:
        assert b'nv_inference_request_success{model="sleeper"' in response.read()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.load_model("sleeper"),
        lambda client: client.unload_model("sleeper"),
        lambda client: client.get_model_repository_index(),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
        lambda client: client.register_system_shared_memory("region", "/shelfwise-anything", 64),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_cuda_shared_memory("region", base64.b64encode(bytes(64)), 0, 64),
    ],
    ids=["load", "unload", "index", "trace", "log", "shared memory", "shared memory status", "CUDA shared memory"],
)
def test_control_over_grpc_is_refused(call: Callable[[object], object], server: TritonServer) -> None:
    client = connect(server)
    with pytest.raises(InferenceServerException, match="restricted"):
        call(client)
    assert client.is_model_ready("sleeper")


def test_nested_json_does_not_reach_a_parser(server: TritonServer) -> None:
    body = gzip.compress(b'{"inputs":' + b"[" * 150_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    request = urllib.request.Request(server.metrics_url.replace("/metrics", "/v2/models/rest/infer"), body, headers)
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=5)
    np.testing.assert_array_equal(sleep(server, 0.0), [[0.0]])


@pytest.fixture(scope="module")
def http_server(start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    return start_server(write_sleeper(tmp_path_factory.mktemp("http")), http_port=0)


@pytest.mark.parametrize(
    "path",
    [
        "repository/index",
        "repository/models/sleeper/load",
        "repository/models/sleeper/unload",
        "logging",
        "systemsharedmemory/region/region/register",
        "cudasharedmemory/region/region/register",
    ],
)
def test_control_over_http_is_refused(path: str, http_server: TritonServer) -> None:
    request = urllib.request.Request(f"{http_server.http_url}/v2/{path}", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=5)
    assert raised.value.code == 403


def test_http_answers_where_it_was_asked_for(http_server: TritonServer) -> None:
    body = {"inputs": [{"name": "seconds", "shape": [1, 1], "datatype": "FP32", "data": [0.0]}]}
    request = urllib.request.Request(f"{http_server.http_url}/v2/models/rest/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["outputs"][0]["data"] == [0.0]


def test_shared_memory_is_registered_where_it_was_asked_for(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    client = connect(start_server(write_sleeper(tmp_path), shared_memory=True))
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '/no-such-region'"):
        client.register_system_shared_memory("region", "/no-such-region", 64)


def test_readiness_of_one_model(server: TritonServer, tmp_path: Path) -> None:
    def ready(model: str) -> str:
        command = ["ready", model, "--url", server.url, "--repository", str(server.repository)]
        return CliRunner().invoke(shelfwise.app, command).output

    assert ready("rest") == ready("sleeper") == "ready: rest\n"
    assert "no ensemble of that name, and none with such a step" in ready("sleepers")


def test_a_repository_without_anything_to_ask_is_not_ready(server: TritonServer, tmp_path: Path) -> None:
    with pytest.raises(readiness.NotReady, match="absent is not a folder"):
        readiness.check(server.url, tmp_path / "absent")
    command = ["ready", "--url", server.url, "--repository", str(tmp_path)]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 1
    assert "there is nothing to ask the server" in result.output


def test_hung_model_turns_readiness_red_within_the_deadline(server: TritonServer) -> None:
    with ThreadPoolExecutor(2) as callers:
        for _ in range(2):  # both instances
            callers.submit(sleep, server, 4.0)
            time.sleep(0.2)
        start = time.monotonic()
        with pytest.raises(readiness.NotReady, match=r"rest: no answer within 1 s"):
            readiness.check(server.url, server.repository, timeout=1.0)
        assert time.monotonic() - start < 3.0
    assert server.wait_until_ready(10) == ["rest"]


def test_hung_server_turns_readiness_red_within_the_deadline(server: TritonServer) -> None:
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(readiness.NotReady, match="server: no answer within 1 s"):
            readiness.check(server.url, server.repository, timeout=1.0)
        assert time.monotonic() - start < 4.0
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert server.wait_until_ready(10) == ["rest"]


def test_unreachable_server_is_not_ready(server: TritonServer) -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with pytest.raises(readiness.NotReady, match=r"server: .*failed to connect"):
        readiness.check(f"127.0.0.1:{port}", server.repository, timeout=3.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist; export the bundle again"),
        ("[", "is not JSON"),
        ("[]", "at least one request"),
        ('[{"minutes": 1}]', "lacks a value for seconds"),
        ('[{"seconds": -1.0}]', "output slept is not finite"),
        ('[{"seconds": [0.0, 0.0]}]', "unexpected shape"),
    ],
    ids=["absent", "broken", "empty", "input missing", "answer not finite", "refused by Triton"],
)
def test_readiness_says_what_is_wrong(content: str | None, reason: str, server: TritonServer, tmp_path: Path) -> None:
    shutil.copytree(server.repository, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "rest" / "readiness.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(readiness.NotReady, match=reason) as raised:
        readiness.check(server.url, tmp_path, timeout=5.0)
    assert list(raised.value.reasons) == ["rest"]


def test_killed_model_process_turns_readiness_red_and_nobody_hangs(server: TritonServer) -> None:
    with ThreadPoolExecutor(2) as callers:
        in_flight = [callers.submit(sleep, server, 8.0) for _ in range(2)]
        time.sleep(0.5)
        for stub in stubs(server):
            stub.kill()
        killed = time.monotonic()
        for answer in in_flight:
            with pytest.raises(InferenceServerException, match="not healthy"):
                answer.result(timeout=20)
        assert time.monotonic() - killed < 7.0
    with pytest.raises(readiness.NotReady, match=r"rest: .*not healthy"):
        server.wait_until_ready(10)
    assert connect(server).is_model_ready("sleeper"), "Triton itself notices now: readiness.py may be simpler"


def test_an_installed_triton_is_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as the container has it, made of the parts from pip, which find their libraries in the environment."""
    environment = server_environment()
    folder = tmp_path / "tritonserver"
    lay_out_backends(environment, folder / "backends")
    (folder / "bin").mkdir()
    (folder / "bin" / "tritonserver").symlink_to(environment.tritonserver)
    for name, value in environment.process_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHELFWISE_TRITON", str(folder))
    repository = write_sleeper(tmp_path / "repository")
    with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=tmp_path / "log") as server:
        assert server.process is not None
        assert psutil.Process(server.process.pid).cmdline()[0] == str(folder / "bin" / "tritonserver")
    monkeypatch.setenv("SHELFWISE_TRITON", str(tmp_path))
    with pytest.raises(TritonMissing, match="names no Triton"):
        TritonServer(repository, grpc_port=0, metrics_port=0).start()


def test_killed_process_of_a_model_that_was_loaded_later_is_noticed(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = start_server(write_sleeper(tmp_path / "repository"), model_control=True)
    before = {stub.pid for stub in stubs(server)}
    client = connect(server)
    client.unload_model("sleeper")
    client.load_model("sleeper")
    wait_for(lambda: len({stub.pid for stub in stubs(server)} - before) == 2)
    assert server.triton is not None
    assert server.triton.killed_models() == []
    next(stub for stub in stubs(server) if stub.pid not in before).kill()
    wait_for(lambda: server.triton is not None and len(server.triton.killed_models()) == 1)


# Beyond localhost


def test_encrypted_and_gated_server_answers_those_who_show_both(
    start_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=shelfwise -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    triton_options = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}",
        "--grpc-restricted-protocol=inference:caller-key=secret",
    ]
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    server = start_server(
        write_sleeper(tmp_path / "repository"),
        triton_options=triton_options,
        credentials=credentials,
        headers={"triton-grpc-protocol-caller-key": "secret"},
    )
    assert server.wait_until_ready(10) == ["rest"]
    with pytest.raises(readiness.NotReady, match=r"rest: .*restricted"):
        readiness.check(server.url, server.repository, 10, credentials=credentials)
    with pytest.raises(readiness.NotReady, match="server: "):
        readiness.check(server.url, server.repository, 2)


# The end


def test_stop_lets_in_flight_requests_finish_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.triton.UNLOAD_SECONDS", 60.0)  # a slow machine's Triton ends by itself, too
    server = TritonServer(write_sleeper(tmp_path), grpc_port=0, metrics_port=0, log_file=tmp_path / "log")
    with server, ThreadPoolExecutor(6) as callers:
        assert server.process is not None
        given = next(part for part in psutil.Process(server.process.pid).cmdline() if "region-prefix" in part)
        prefix = given.rpartition("=")[2]
        processes = [psutil.Process(server.process.pid), *stubs(server)]
        # Two instances: two requests in execution, four waiting.
        answers = [callers.submit(sleep, server, 1.0) for _ in range(6)]
        time.sleep(0.5)
        begin = time.monotonic()
        stopped = threading.Thread(target=server.stop)
        stopped.start()
        time.sleep(0.3)
        with pytest.raises(InferenceServerException):
            sleep(server, 0.0, timeout=5)
        for answer in answers:
            np.testing.assert_array_equal(answer.result(timeout=20), [[1.0]])
        stopped.join(20)
        assert time.monotonic() - begin < server.grace_seconds
    assert server.stop() == 0
    assert server.process.returncode == 0
    assert not any(process.is_running() for process in processes)
    assert not list(FOLDER.glob(f"{prefix}*"))


def test_stop_is_graceful_after_callers_gave_up(start_server: Callable[..., TritonServer], tmp_path: Path) -> None:
    repository = write_sleeper(tmp_path)
    # Deadlines that end around the answer kill one Triton 24.10 in about 75 here (deploy/Dockerfile names the defect).
    for _ in range(3):
        server = start_server(repository)
        assert server.process is not None
        for timeout in np.linspace(0.001, 0.01, 60):
            with contextlib.suppress(InferenceServerException):  # the deadline, for most of them
                sleep(server, 0.002, timeout=float(timeout))
        if server.process.poll() is None:
            break
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 10
