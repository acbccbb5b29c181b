"""What a TensorRT plan was built for, and whether this machine can run it.

A plan runs with the library that built it, on the GPU generation that it was built for, and says neither in a way that
a person understands when it fails to load.  The export writes a record beside every plan; server and repository check
read it and refuse with a sentence before Triton tries.  Only the standard library: servers import this.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
RECORD_SUFFIX = ".json"


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    compute_capability: str  # "8.9"


@dataclass(frozen=True)
class PlanRecord:
    """What a plan was built for; `<plan>.json`."""

    builder: str  # TENSORRT or TENSORRT_RTX
    builder_version: str
    compute_capability: str  # "8.9"
    version_compatible: bool
    precision: str
    batch_sizes: tuple[int, int, int]  # smallest, most frequent, largest
    executed: bool  # whether its answers were compared, or only those of the ONNX file that it was built from

    def save(self, plan: Path) -> None:
        """Writes the record beside `plan`."""
        plan.with_name(plan.name + RECORD_SUFFIX).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(plan: Path) -> PlanRecord:
        """The record beside `plan`.

        Raises:
            ValueError: there is none, or it is not one; names the file.
        """
        path = plan.with_name(plan.name + RECORD_SUFFIX)
        try:
            content = json.loads(path.read_text())
            return PlanRecord(**content | {"batch_sizes": tuple(content["batch_sizes"])})
        except FileNotFoundError:
            raise ValueError(f"{plan} has no record of what it was built for ({path.name})") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no record of a plan: {error!r}") from None


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine, none where the driver is missing."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.rsplit(",", 1)] for line in result.stdout.splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 2]


def refusal(plans: Sequence[Path], machine: Sequence[Gpu]) -> str:
    """Why none of a model's plans can run on `machine` under Triton, "" when one can.

    Args:
        plans: the plans of one version of a model, one a GPU generation.
        machine: the GPUs there are, from `gpus`.

    Raises:
        ValueError: a plan has no readable record.
    """
    records = [(plan, PlanRecord.load(plan)) for plan in plans]
    built = "; ".join(
        f"{plan.name} was built by {record.builder} {record.builder_version} for compute capability "
        f"{record.compute_capability}"
        for plan, record in records
    )
    if not machine:
        return f"{built}; this machine has no NVIDIA GPU. Export with --target cpu to serve here"
    if not any(record.builder == TENSORRT for _, record in records):
        return (
            f"{built}; Triton's tensorrt backend runs plans of {TENSORRT} only. Export with --target tensorrt on a "
            f"machine with a GPU and the package {TENSORRT}"
        )
    usable = {record.compute_capability for _, record in records if record.builder == TENSORRT}
    for gpu in machine:
        if gpu.compute_capability not in usable:
            return (
                f"{built}; {gpu.name} has compute capability {gpu.compute_capability}. Export with --target tensorrt "
                "on a machine with that GPU"
            )
    return ""


def repository_refusals(repository: Path) -> dict[str, str]:
    """Models of a repository whose newest version has plans that cannot run here, and why.

    Raises:
        ValueError: a plan has no readable record.
    """
    reasons = {}
    machine: list[Gpu] | None = None
    for model in sorted(path.parent for path in repository.glob("*/config.pbtxt")):
        versions = sorted((path for path in model.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        plans = sorted(versions[-1].glob("*.plan")) if versions else []
        if plans:
            machine = gpus() if machine is None else machine
            reason = refusal(plans, machine)
            if reason:
                reasons[model.name] = reason
    return reasons
