"""The Dockerfile cannot be built here; what it says of this project's files can be checked, so that it stays true."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import shelfwise
from export.repository import SOURCE

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


def test_what_the_container_copies_exists() -> None:
    sources = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    assert sources == ["serving/requirements-models.txt"]
    assert all((ROOT / source).is_file() for source in sources)


def test_the_container_installs_what_the_python_models_import_and_nothing_else() -> None:
    modules = set()
    for path in [*SOURCE.glob("*/1/model.py"), *(ROOT / file for file in COPIED.values())]:
        modules |= imported(path)
    own = {"triton_python_backend_utils", *COPIED}
    third_party = modules - own - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    needed = {distributions[module][0].lower() for module in third_party}
    lines = (ROOT / "serving" / "requirements-models.txt").read_text().splitlines()
    installed = {re.split(r"[<>=\[]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    assert installed == needed
