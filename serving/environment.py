"""What a Triton server needs from the machine: its Python environment, its backends and enough shared memory.

The `tritonserver` binary comes out of the package nvidia-pytriton, in an environment of its own (`.venv-server`),
because the stub of Triton's Python backend wants numpy 1. Triton looks for backends in one folder; `lay_out_backends`
puts the Python backend, the stub of the right Python and our Python-based `onnxruntime` backend (Triton accepts
`backends/NAME/model.py` where there is no `libtriton_NAME.so`) side by side there, and leaves site-packages alone.
Whatever would make Triton stall or die later is refused here, before it starts, each with its own exception.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVING = Path(__file__).resolve().parent
REQUIREMENTS = SERVING / "requirements.txt"
CONSTRAINTS = SERVING / "constraints.txt"
ENVIRONMENT_VARIABLE = "SHELFWISE_SERVER_ENV"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
# In a checkout beside the project's own; an installed package has no folder to write to.
CHECKOUT = (SERVING.parent / "pyproject.toml").is_file()
DEFAULT_ENVIRONMENT = SERVING.parent / ".venv-server" if CHECKOUT else CACHE / "shelfwise" / "server"
# Names the folder of a whole Triton, as NVIDIA's container has it, to be used instead of the one from pip.
INSTALLED_VARIABLE = "SHELFWISE_TRITON"

# numpy 1.26 has wheels up to Python 3.12, ONNX Runtime from 3.11 on; nvidia-pytriton has a stub for both.
SUPPORTED_PYTHONS = ((3, 11), (3, 12))

MEBIBYTE = 2**20
# A Python model instance starts with a region of 1 MiB and grows it to the largest batch that it has seen: images of a
# full batch in, pixels out. Below these figures a server starts, and then fails on its first large batch.
SHARED_MEMORY_PER_INSTANCE = 4 * MEBIBYTE
SHARED_MEMORY_RESERVE = 32 * MEBIBYTE


class ServerEnvironmentError(RuntimeError):
    """The machine cannot run the server; the message says what is missing and what to do."""


class EnvironmentBuildError(ServerEnvironmentError):
    """The server's Python environment could not be built."""


class TritonMissing(ServerEnvironmentError):
    """The environment holds no tritonserver binary, or no stub for its Python."""


class LibpythonMissing(ServerEnvironmentError):
    """The stub of the Python backend does not find the shared library of Python."""


class SharedMemoryTooSmall(ServerEnvironmentError):
    """/dev/shm is missing or too small for the repository's Python model instances."""


@dataclass(frozen=True)
class ServerEnvironment:
    """An environment that can run Triton: where its parts are.

    `library_path` is the LD_LIBRARY_PATH of the server process, and only of that one. `backends` is the folder of an
    installed Triton's backends, which is run as it is, in the environment variables that it finds; None: from pip.
    """

    root: Path
    tritonserver: Path
    stub: Path
    python_backend: Path
    caches: Path
    library_path: str
    backends: Path | None = None

    def process_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment variables of the server process: PATH decides which Python packages the stubs see."""
        variables = dict(os.environ if base is None else base)
        if self.backends is not None:
            return variables | {"PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"):
            variables.pop(name, None)
        variables["PATH"] = os.pathsep.join([str(self.root / "bin"), variables.get("PATH", os.defpath)])
        variables["VIRTUAL_ENV"] = str(self.root)
        variables["LD_LIBRARY_PATH"] = self.library_path
        variables["PYTHONDONTWRITEBYTECODE"] = "1"  # a model repository is read-only to the server
        variables["PYTHONUNBUFFERED"] = "1"
        return variables


def server_environment(root: Path | None = None) -> ServerEnvironment:
    """The environment to run Triton in, built when it is missing and completed when it is out of date.

    A Triton named by SHELFWISE_TRITON, as in the container, is taken as it is.
    `root` defaults to the folder named by SHELFWISE_SERVER_ENV, else to `.venv-server` in the project, or to the
    user's cache where the project is installed as a package.
    Raises EnvironmentBuildError, TritonMissing or LibpythonMissing.
    """
    if root is None:
        installed = os.environ.get(INSTALLED_VARIABLE)
        if installed:
            return installed_triton(Path(installed))
        root = Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ENVIRONMENT)
    root = root.absolute()
    if outdated(root):
        with _build_lock(root):
            missing = outdated(root)  # another process may have built it while this one waited
            if missing:
                _build(root, missing)
    return locate(root)


def installed_triton(folder: Path) -> ServerEnvironment:
    """The parts of a whole Triton, "/opt/tritonserver" in NVIDIA's container. Raises TritonMissing."""
    tritonserver, python = folder / "bin" / "tritonserver", folder / "backends" / "python"
    stub = python / "triton_python_backend_stub"
    for part in (tritonserver, stub):
        if not part.is_file():
            raise TritonMissing(f"{part} does not exist: {INSTALLED_VARIABLE}={folder} names no Triton")
    return ServerEnvironment(folder, tritonserver, stub, python, folder / "caches", "", folder / "backends")


def outdated(root: Path) -> list[str]:
    """The pinned requirements that the environment does not hold in the pinned version (all when there is none)."""
    pins = _pins(CONSTRAINTS)
    wanted = {name: pins[name] for name in _requirement_names(REQUIREMENTS)}
    installed = _installed(root)
    return [f"{name}=={version}" for name, version in wanted.items() if installed.get(name) != version]


def locate(root: Path) -> ServerEnvironment:
    """Find Triton's parts in an environment and prove that the stub starts. Raises TritonMissing, LibpythonMissing."""
    site_packages = _site_packages(root)
    triton = site_packages / "pytriton" / "tritonserver"
    python_version = site_packages.parent.name.removeprefix("python")
    tritonserver = triton / "bin" / "tritonserver"
    stub = triton / "python_backend_stubs" / python_version / "triton_python_backend_stub"
    if not tritonserver.is_file():
        raise TritonMissing(
            f"{tritonserver} does not exist: {root} does not hold nvidia-pytriton. Install it with `{root}/bin/python "
            f"-m pip install -r {REQUIREMENTS} -c {CONSTRAINTS}`, or remove the folder to have it built again."
        )
    if not stub.is_file():
        raise TritonMissing(f"nvidia-pytriton carries no Python backend stub for Python {python_version}: {stub}")
    libraries = [site_packages / "nvidia_pytriton.libs", *_libpython_folders(root)]
    library_path = os.pathsep.join(map(str, libraries))
    check_libpython(stub, library_path)
    return ServerEnvironment(
        root=root,
        tritonserver=tritonserver,
        stub=stub,
        python_backend=triton / "backends" / "python",
        caches=triton / "caches",
        library_path=library_path,
    )


def check_libpython(stub: Path, library_path: str) -> None:
    """Start the stub without arguments, as Triton does: exit status 1 is its usage message, 127 the dynamic loader's.

    A stub that cannot be loaded makes Triton wait for it without a word, so it is refused here.
    Raises LibpythonMissing.
    """
    result = subprocess.run(
        [str(stub)], env={"LD_LIBRARY_PATH": library_path}, capture_output=True, text=True, timeout=60, check=False
    )
    if result.returncode == 1:
        return
    version = stub.parent.name
    raise LibpythonMissing(
        f"Triton's Python backend cannot start: {result.stderr.strip() or f'exit status {result.returncode}'}. "
        f"It needs libpython{version}.so.1.0, looked for in {library_path} and in the system's folders. Use a Python "
        f"built with --enable-shared, or install the library (Debian, Ubuntu: apt-get install libpython{version})."
    )


def lay_out_backends(environment: ServerEnvironment, folder: Path) -> Path:
    """Write a folder for `tritonserver --backend-directory`: the Python backend with its stub, and `onnxruntime`.

    Copies, since Triton refuses a backend whose library lies elsewhere. `folder` must not exist yet. Returns it.
    """
    python = folder / "python"
    python.mkdir(parents=True)
    for part in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copyfile(environment.python_backend / part, python / part)
    stub = python / "triton_python_backend_stub"
    shutil.copyfile(environment.stub, stub)
    stub.chmod(0o755)
    onnxruntime = folder / "onnxruntime"
    onnxruntime.mkdir()
    shutil.copyfile(SERVING / "backends" / "onnxruntime" / "model.py", onnxruntime / "model.py")
    return folder


def check_shared_memory(instances: int, folder: Path = Path("/dev/shm")) -> None:
    """Refuse to start `instances` Python model instances where shared memory would run out.

    Raises SharedMemoryTooSmall, saying how much is there, how much is needed and what to do.
    """
    needed = instances * SHARED_MEMORY_PER_INSTANCE + SHARED_MEMORY_RESERVE
    if not folder.is_dir():
        raise SharedMemoryTooSmall(
            f"{folder} does not exist; Triton's Python backend exchanges tensors through it. Mount a tmpfs of at least "
            f"{_mebibytes(needed)} there: mount -t tmpfs -o size={_mebibytes(needed, 'm')} tmpfs {folder}"
        )
    status = os.statvfs(folder)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    if free < needed:
        suggested = max(2 * needed, total - free + needed)
        raise SharedMemoryTooSmall(
            f"{folder} has {_mebibytes(free)} free of {_mebibytes(total)}; the repository's {instances} Python model "
            f"instances need {_mebibytes(needed)}. In Docker start the container with "
            f"--shm-size={_mebibytes(suggested, 'm')}, in Kubernetes mount an emptyDir of medium Memory at {folder}, "
            f"elsewhere run: mount -o remount,size={_mebibytes(suggested, 'm')} {folder}"
        )


def _mebibytes(size: int, unit: str = " MiB") -> str:
    return f"{-(-size // MEBIBYTE)}{unit}"


@contextmanager
def _build_lock(root: Path) -> Iterator[None]:
    """One process builds at a time. The lock is on the parent folder, so that no lock file stays behind."""
    root.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)


def _build(root: Path, missing: list[str]) -> None:
    if root.is_dir() and any(root.iterdir()) and not (root / "pyvenv.cfg").is_file():
        raise EnvironmentBuildError(
            f"{root} holds files and is no virtual environment; {ENVIRONMENT_VARIABLE} must name one, or a new folder"
        )
    print(f"Building the server's environment in {root} (once, a few minutes): {', '.join(missing)}", file=sys.stderr)
    if not (root / "bin" / "python").exists() or _python_version(root / "bin" / "python") not in SUPPORTED_PYTHONS:
        _run([str(_base_python()), "-m", "venv", "--clear", str(root)])
    pip = [str(root / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "-r", str(REQUIREMENTS), "-c", str(CONSTRAINTS)])
    still_missing = outdated(root)
    if still_missing:
        raise EnvironmentBuildError(f"pip reported success, but {root} lacks {', '.join(still_missing)}")


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise EnvironmentBuildError(f"`{' '.join(command)}` failed:\n{result.stderr.strip()[-4000:]}")


def _base_python() -> Path:
    """This interpreter when its version is supported, else the first supported one on PATH."""
    if sys.version_info[:2] in SUPPORTED_PYTHONS:
        return Path(sys.executable)
    for major, minor in SUPPORTED_PYTHONS:
        found = shutil.which(f"python{major}.{minor}")
        if found and _python_version(Path(found)) == (major, minor):
            return Path(found)
    wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
    raise EnvironmentBuildError(
        f"the server's environment needs Python {wanted} (numpy 1.26 and the stub of Triton's Python backend); this is "
        f"Python {sys.version_info.major}.{sys.version_info.minor} and no other is on PATH"
    )


def _python_version(python: Path) -> tuple[int, int] | None:
    result = subprocess.run(
        [str(python), "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        return None
    major, minor = result.stdout.split()
    return int(major), int(minor)


def _site_packages(root: Path) -> Path:
    folders = sorted((root / "lib").glob("python3.*/site-packages"))
    if not folders:
        raise TritonMissing(f"{root} is not a Python environment: it has no lib/python3.*/site-packages")
    return folders[0]


def _libpython_folders(root: Path) -> list[Path]:
    """Where the environment's base interpreter keeps its shared library; the system's folders come after anyway."""
    program = (
        "import os, sys, sysconfig;"
        "print(sysconfig.get_config_var('LIBDIR') or '');"
        "print(os.path.join(sys.base_prefix, 'lib'));"
        "print(sysconfig.get_config_var('LIBPL') or '')"
    )
    result = subprocess.run([str(root / "bin" / "python"), "-c", program], capture_output=True, text=True, check=False)
    folders = [Path(line) for line in result.stdout.splitlines() if line]
    return [folder for folder in dict.fromkeys(folders) if list(folder.glob("libpython3*.so*"))]


def _pins(path: Path) -> dict[str, str]:
    pins = {}
    for line in path.read_text().splitlines():
        name, equals, version = line.partition("==")
        if equals and not line.startswith("#"):
            pins[_canonical(name)] = version.strip()
    return pins


def _requirement_names(path: Path) -> list[str]:
    names = []
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            names += _requirement_names(path.parent / line.removeprefix("-r ").strip())
        elif line:
            names.append(_canonical(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]))
    return names


def _installed(root: Path) -> dict[str, str]:
    """Names and versions, read off the *.dist-info folders: no process to start."""
    versions = {}
    for folder in (root / "lib").glob("python3.*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        if (folder / "RECORD").exists():
            versions[_canonical(name)] = version
    return versions


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
