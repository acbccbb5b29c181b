"""The wheels in clean environments: what serves and asks takes no torch, and finds all that it reads beside itself."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serving.addresses import free_ports
from serving.environment import server_environment
from tests.releases import publish_linear
from tests.triton_state import wait_for

pytestmark = pytest.mark.packages
ROOT = Path(__file__).parents[1]


def build(project: Path, folder: Path) -> Path:
    """The wheel of a project, out of a copy: a build leaves files behind."""
    copy = folder / "source"
    files = subprocess.run(["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (project / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((project / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A clean environment with a wheel and what it depends on; its folder of commands."""
    run(sys.executable, "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run(*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return folder / "bin"


def run(*command: str, **variables: str) -> str:
    """What a command prints; one that fails fails the test."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def test_the_wheel_serves_and_asks_without_torch(tmp_path: Path) -> None:
    wheel = build(ROOT, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for folder in ("model_repository", "serving"):
        files = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        assert set(files.stdout.splitlines()) <= held, "all that is in git of it"
    commands = install(wheel, tmp_path / "environment")
    assert "torch" not in run(str(commands / "python"), "-m", "pip", "list")

    repository = tmp_path / "repository"
    publish_linear(repository, factor=2, summand=1)
    port, metrics = map(str, free_ports("127.0.0.1", 2))
    shelfwise, option = str(commands / "shelfwise"), ("--repository", str(repository))
    assert "fit their files" in run(shelfwise, "repository", "check", *option)
    serve = [shelfwise, "serve", *option, "--grpc-port", port, "--metrics-port", metrics]
    variables = os.environ | {"SHELFWISE_SERVER_ENV": str(server_environment().root)}
    with subprocess.Popen(serve, cwd="/", env=variables, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            wait_for(lambda: server.poll() is not None or f"127.0.0.1:{port}" in server.stdout.readline(), 120)
            assert run(shelfwise, "ready", *option, "--url", f"127.0.0.1:{port}") == "ready: linear\n"
        finally:
            server.terminate()
    assert server.returncode == 0


def test_the_client_is_a_wheel_of_its_own(tmp_path: Path) -> None:
    commands = install(build(ROOT / "client", tmp_path / "wheel"), tmp_path / "environment")
    program = (
        "from shelfwise_client import ShelfwiseClient, ServerUnavailable\n"
        "with ShelfwiseClient('127.0.0.1:1', timeout=0.2) as client:\n"
        "    try: client.categorize(title='a shoe')\n"
        "    except ServerUnavailable as error: print('unavailable')\n"
    )
    assert run(str(commands / "python"), "-c", program) == "unavailable\n"
