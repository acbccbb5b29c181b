"""The Dockerfile cannot be built here; what it says of this project's files can be checked, so that it stays true."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import shelfwise
from export import fused_colour_matcher
from export.match_colours import SERVED_MODULES
from repository.configs import SOURCE

ROOT = Path(shelfwise.__file__).parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# Written by the export beside the model.py files, each a copy of a module of the project.
COPIED = {"images": "catalogue/images.py", "colour_labels": "catalogue/colour_labels.py"}
COPIED |= {"assignment": "models/assignment.py"}


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
    modules -= {"triton_python_backend_utils", "fused_colour_matcher", *COPIED, *SERVED_MODULES}
    return {packages_distributions()[module][0].lower() for module in modules}


def test_what_the_container_copies_exists() -> None:
    sources = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    assert sources == ["serving/requirements-models.txt", "serving/requirements-gpu.txt"]
    assert all((ROOT / source).is_file() for source in sources)


def test_the_container_installs_what_the_python_models_import_and_nothing_else() -> None:
    files = [*SOURCE.glob("*/1/model.py"), *(ROOT / file for file in COPIED.values())]
    assert requirements("requirements-models.txt") == distributions_of(files)


def test_for_a_gpu_it_installs_what_the_fused_matcher_imports_too() -> None:
    modules = [ROOT / package / f"{name}.py" for package, names in SERVED_MODULES.items() for name in names]
    files = [SOURCE / "colour_matcher" / "fused_model.py", Path(fused_colour_matcher.__file__), *modules]
    assert distributions_of(files) <= requirements("requirements-gpu.txt")
