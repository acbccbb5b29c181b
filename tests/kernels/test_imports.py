"""What a GPU machine needs: kernels and their benchmarks run on torch, Triton and numpy from a bare checkout."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ALONE = '''
import importlib.metadata as metadata
import re
import sys
from pathlib import Path

pending, needed = ["torch", "triton", "numpy"], set()
while pending:
    name = re.sub("[-_.]+", "-", pending.pop()).lower()
    if name in needed:
        continue
    needed.add(name)
    try:
        wanted = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        continue
    pending += [re.match("[A-Za-z0-9._-]+", want)[0] for want in wanted if "extra ==" not in want]
packages = metadata.packages_distributions()
missing = {
    package
    for package, owners in packages.items()
    if not any(re.sub("[-_.]+", "-", owner).lower() in needed for owner in owners)
} - {"kernels", "benchmarks"}


class Missing:
    """As if nothing else were installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


assert {"pydantic", "transformers", "onnxruntime", "matplotlib"} <= missing
sys.meta_path.insert(0, Missing())
sys.path.insert(0, ".")
for path in sorted([*Path("kernels").glob("*.py"), *Path("benchmarks/kernels").glob("*.py")]):
    __import__(".".join(path.with_suffix("").parts))
'''


def bare_checkout(folder: Path) -> Path:
    """The kernels and what runs their benchmarks, and nothing else of the project."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "benchmarks" / "kernels", folder / "benchmarks" / "kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("run.py", "results.py", "markdown.py"):
        shutil.copy(ROOT / "benchmarks" / name, folder / "benchmarks")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_kernels_and_their_benchmarks_need_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    result = run(bare_checkout(tmp_path), "-c", ALONE)
    assert result.returncode == 0, result.stderr[-3000:]


def test_an_import_of_anything_else_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    with (bare_checkout(tmp_path) / "kernels" / "ragged.py").open("a") as file:
        file.write("\nimport pydantic\n")
    result = run(tmp_path, "-c", ALONE)
    assert result.returncode != 0
    assert "No module named 'pydantic'" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it measures")
def test_the_suite_leaves_no_file_without_a_figure(tmp_path: Path) -> None:
    folder = bare_checkout(tmp_path)
    result = run(folder, "benchmarks/run.py", "kernels", "--suite", "matcher", "--out", "results")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "not measured" in result.stdout
    assert not (folder / "results").exists()


def test_no_circle_ties_the_kernels_together() -> None:
    """Imports inside functions count: the order is one of knowing about each other, not of loading."""
    files = {f"kernels.{path.stem}": ast.parse(path.read_text()) for path in (ROOT / "kernels").glob("*.py")}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            else:
                continue
            graph[name] |= imported & set(files)
    assert graph["kernels.label_kl"] >= {"kernels.label_kl_torch", "kernels.label_kl_triton"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle
