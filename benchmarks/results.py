"""Writes what a benchmark measured as JSON: rows beside the machine, the versions, the commit and the date.

A figure that was not measured is the string "not measured", never an estimate. A row's "noise" maps the names of its
figures to the spread that they had in the run (largest less smallest over median): what `compare` calls a change.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"


def machine() -> dict[str, Any]:
    """Processor, cores usable by this process, and the GPU with its memory where torch is installed and sees one."""
    record: dict[str, Any] = {"system": platform.platform(), "processor": _processor(), "cores": _cores()}
    try:
        import torch
    except ImportError:
        return record
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        record["gpu"] = properties.name
        record["gpu_memory_bytes"] = properties.total_memory
        record["cuda"] = torch.version.cuda
    return record


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of packages; those that are absent are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with "+" where tracked files differ from it; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def write(name: str, rows: list[dict[str, Any]], packages: Iterable[str], folder: Path = RESULTS) -> Path:
    """Write `folder`/`name`.json, aside first, and return its path."""
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(packages),
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    aside = path.with_suffix(".json.part")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(aside, path)
    return path


def read(path: Path) -> dict[str, Any]:
    """A file that `write` wrote.

    Raises:
        ValueError: it is no JSON object with rows; names the file.
    """
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
        raise ValueError(f"{path} holds no rows: it is no file of benchmark results")
    return record


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
