"""The Dockerfile cannot be built here; what it says of this project's files can be checked, so that it stays true."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from typer.testing import CliRunner

import shelfwise
from export import fused_colour_matcher
from export.match_colours import SERVED_MODULES
from repository.configs import SOURCE
from serving import readiness

ROOT = Path(shelfwise.__file__).parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# Written by the export beside the model.py files, each a copy of a module of the project.
COPIED = {"images": "catalogue/images", "colour_labels": "catalogue/colour_labels.py"}
COPIED |= {"assignment": "models/assignment.py", "served_entities": "catalogue/entities.py"}
COPIED |= {"served_index": "index/partition.py"}


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def requirements(name: str) -> set[str]:
    """What a file of requirements names, in lower case, files that it includes among them."""
    found = set()
    for line in (ROOT / "serving" / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= requirements(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found.add(re.split(r"[<>=\[]", line)[0].lower())
    return found


def distributions_of(files: list[Path]) -> set[str]:
    """The distributions that files import, in lower case; not the standard library, Triton's module and our own."""
    modules = set().union(*map(imported, files)) - set(sys.stdlib_module_names)
    modules -= {"triton_python_backend_utils", "fused_colour_matcher", "prepare_product", *COPIED, *SERVED_MODULES}
    return {packages_distributions()[module][0].lower() for module in modules}


def test_what_the_container_copies_exists() -> None:
    sources = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    assert {"shelfwise.py", "ask.py", "serving", "repository"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_it_installs_what_serve_and_its_probe_import() -> None:
    files = [ROOT / "shelfwise.py", *(ROOT / "serving").glob("*.py"), *(ROOT / "repository").glob("*.py")]
    files.remove(ROOT / "repository" / "check.py")  # before a container, not in it
    known = {"filelock", "grpc", "numpy", "psutil", "rich", "tritonclient", "typer"}
    wanted = set().union(*map(imported, files)) & {*known, "torch", "onnx"}
    assert wanted == known
    brought = {"grpc": "tritonclient", "numpy": "tritonclient"}  # by its extra [grpc]
    assert {brought.get(name, name) for name in wanted} == requirements("requirements-serve.txt")
    absent = "{'torch', 'onnx', 'catalogue', 'export'}"
    program = f"import sys, shelfwise, serving.foreground, serving.readiness; print({absent} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_container_installs_what_the_python_models_import_and_nothing_else() -> None:
    copied = [ROOT / path for path in COPIED.values()]
    files = [*SOURCE.glob("*/1/model.py"), *(file for path in copied for file in [path, *path.glob("*.py")])]
    files = [file for file in files if file.is_file()]
    assert requirements("requirements-models.txt") == distributions_of(files)


def test_for_a_gpu_it_installs_what_the_fused_matcher_imports_too() -> None:
    modules = [ROOT / package / f"{name}.py" for package, names in SERVED_MODULES.items() for name in names]
    files = [SOURCE / "colour_matcher" / "fused_model.py", Path(fused_colour_matcher.__file__), *modules]
    assert distributions_of(files) <= requirements("requirements-gpu.txt")


def test_the_ray_job_is_a_command_that_there_is_on_volumes_that_are_mounted() -> None:
    job = yaml.safe_load((ROOT / "deploy" / "ray-job.yaml").read_text())["spec"]
    program, *arguments = job["entrypoint"].split()
    assert program == "shelfwise"
    assert CliRunner().invoke(shelfwise.app, [*arguments, "--help"]).exit_code == 0
    paths = [argument for argument in arguments if argument.startswith("/")]
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    cores = 0
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert all(any(path.startswith(f"{mounted}/") for mounted in mounts.values()) for path in paths)
        cores += group.get("replicas", 1) * int(group["rayStartParams"]["num-cpus"])
    assert cores == int(arguments[arguments.index("--workers") + 1])


def test_the_kubernetes_and_envoy_files_say_what_serve_does() -> None:
    deployment, service = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert pod["terminationGracePeriodSeconds"] > int(flags["lame-duck"]) + int(flags["grace"])
    assert CliRunner().invoke(shelfwise.app, ["serve", *container["args"], "--help"]).exit_code == 0
    probe = container["readinessProbe"]
    assert probe["exec"]["command"][1:] == ["shelfwise.py", "ready"]
    assert probe["timeoutSeconds"] > inspect.signature(readiness.check).parameters["timeout"].default
    assert [port["port"] for port in service["spec"]["ports"]] == [8001]
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text())["static_resources"]
    (manager,) = envoy["listeners"][0]["filter_chains"][0]["filters"]
    filters = {
        item["name"].rpartition(".")[2]: item["typed_config"] for item in manager["typed_config"]["http_filters"]
    }
    assert list(filters) == ["jwt_authn", "local_ratelimit", "buffer", "router"]
    route = manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"][0]
    methods = re.compile(route["match"]["safe_regex"]["regex"])
    for method in ("ModelInfer", "ModelConfig"):
        assert methods.fullmatch(f"/inference.GRPCInferenceService/{method}")
    for method in ("SystemSharedMemoryRegister", "RepositoryModelLoad", "TraceSetting", "LogSettings"):
        assert not methods.fullmatch(f"/inference.GRPCInferenceService/{method}")
