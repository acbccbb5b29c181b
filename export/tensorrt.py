"""ONNX files to TensorRT plans: strongly typed networks, one optimisation profile over the serving batch sizes.

Two builders behind one path.  `tensorrt` builds for the GPU of this machine, and Triton's tensorrt backend runs what it
builds.  `tensorrt-rtx` builds for named GPU generations without a GPU, so a machine that has none (CI) proves that
every graph parses and compiles; its plans run under TensorRT-RTX only.  Strongly typed means that the types in the ONNX
file are obeyed: precision is decided in the graph, where parity was measured, not by the builder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalogue.atomic import atomic_file
from repository.plans import TENSORRT, TENSORRT_RTX, PlanRecord

from .onnx_graphs import ExportError
from .parity import split_rows

PLAN_FILE = "model.plan"
WORKSPACE_BYTES = 4 * 2**30
_MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}


@dataclass(frozen=True)
class PlanBuilder:
    """A TensorRT library and the GPU generations that it builds for."""

    name: str  # TENSORRT or TENSORRT_RTX
    library: ModuleType
    compute_capabilities: tuple[str, ...]  # "8.9"

    @property
    def version(self) -> str:
        return str(self.library.__version__)


def plan_builder(generations: Sequence[str] = ()) -> PlanBuilder:
    """The builder for what is asked, of what is installed.

    Args:
        generations: compute capabilities ("8.9") to build for without such a GPU; empty: the GPU of this machine.

    Raises:
        ExportError: no builder is installed, or it cannot build for that; says which package or name would do.
    """
    if not generations:
        library = _library(TENSORRT)
        if library is None or not torch.cuda.is_available():
            missing = "the package tensorrt is not installed" if library is None else "this machine has no GPU"
            raise ExportError(
                f"{missing}: name the GPU generations to build for with --gpu (8.9 for Ada; needs tensorrt-rtx), "
                "or export on a machine with a GPU and tensorrt"
            )
        major, minor = torch.cuda.get_device_capability()
        return PlanBuilder(TENSORRT, library, (f"{major}.{minor}",))
    library = _library(TENSORRT_RTX)
    if library is None:
        raise ExportError("--gpu needs the package tensorrt-rtx-cu13, which builds plans without a GPU")
    known = known_generations(library)
    unknown = [generation for generation in generations if generation not in known]
    if unknown:
        raise ExportError(f"tensorrt-rtx does not build for {', '.join(unknown)}; it knows {', '.join(known)}")
    return PlanBuilder(TENSORRT_RTX, library, tuple(dict.fromkeys(generations)))


def known_generations(library: ModuleType) -> list[str]:
    """Compute capabilities that TensorRT-RTX names, e.g. "8.9"."""
    names = library.ComputeCapability.__members__
    return [f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM")]


def plan_file(builder: PlanBuilder, compute_capability: str) -> str:
    """The name of a plan in a version's folder; Triton chooses through cc_model_filenames when there are several."""
    if len(builder.compute_capabilities) == 1:
        return PLAN_FILE
    return f"model.sm{compute_capability.replace('.', '')}.plan"


def build_plan(
    builder: PlanBuilder,
    compute_capability: str,
    onnx_file: Path,
    plan: Path,
    *,
    batch_sizes: tuple[int, int, int],
    precision: str,
    axis_ranges: Mapping[str, tuple[int, int, int]] | None = None,
    version_compatible: bool = False,
) -> PlanRecord:
    """Builds one plan, with the record of what it was built for beside it.

    Args:
        builder: from `plan_builder`.
        compute_capability: one of the builder's.
        onnx_file: as exported; the first axis of an input is the batch, unless `axis_ranges` has its name.
        plan: the file to write.
        batch_sizes: smallest, most frequent and largest batch that will be served.
        precision: for the record.
        axis_ranges: smallest, most frequent and largest length of further dynamic axes, by their names in the file.
        version_compatible: let later TensorRT versions run the plan (larger, somewhat slower).

    Raises:
        ExportError: TensorRT cannot parse or build the graph; in its words.
    """
    trt = builder.library
    log = _Log(trt)
    trt_builder = trt.Builder(log.logger)
    network = trt_builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx_file)):
        raise ExportError(f"{onnx_file}: {builder.name} cannot parse the graph: {log.errors()}")
    config = trt_builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = trt_builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        ranges = []
        for axis, size in enumerate(tuple(tensor.shape)):
            name = tensor.get_dimension_name(axis)
            if axis == 0 and name not in (axis_ranges or {}):
                ranges.append(batch_sizes)
                continue
            if size < 0 and name not in (axis_ranges or {}):
                raise ExportError(f"{onnx_file}: axis {axis} ({name}) of {tensor.name} varies, within no stated range")
            ranges.append((size, size, size) if size >= 0 else (axis_ranges or {})[name])
        profile.set_shape(tensor.name, *zip(*ranges, strict=True))
    config.add_optimization_profile(profile)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if builder.name == TENSORRT_RTX:
        config.num_compute_capabilities = 1
        generation = getattr(trt.ComputeCapability, f"SM{compute_capability.replace('.', '')}")
        config.set_compute_capability(generation, 0)
    cache = _timing_cache_file(builder, compute_capability) if builder.name == TENSORRT else None
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.is_file() else b""), False)
    serialized = trt_builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"{onnx_file}: {builder.name} cannot build for {compute_capability}: {log.errors()}")
    plan.write_bytes(bytes(serialized))
    if cache is not None:
        with atomic_file(cache) as aside:
            aside.write_bytes(bytes(config.get_timing_cache().serialize()))
    record = PlanRecord(
        builder=builder.name,
        builder_version=builder.version,
        compute_capability=compute_capability,
        version_compatible=version_compatible,
        precision=precision,
        batch_sizes=batch_sizes,
        executed=builder.name == TENSORRT,
    )
    record.save(plan)
    return record


def run_plan(
    builder: PlanBuilder, plan: Path, inputs: Mapping[str, Tensor], outputs: Sequence[str], batch: int
) -> dict[str, np.ndarray]:
    """Every output [N, …] of a plan on `inputs`, on this machine's GPU, `batch` rows at a time.

    Raises:
        ExportError: TensorRT cannot load the plan.
    """
    trt = builder.library
    log = _Log(trt)
    runtime = trt.Runtime(log.logger)
    runtime.engine_host_code_allowed = True  # version-compatible plans hold code, too; this one was built a moment ago
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise ExportError(f"{plan}: {builder.name} cannot load the plan: {log.errors()}")
    context = engine.create_execution_context()
    stream = torch.cuda.current_stream()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for part in split_rows(inputs, batch):
        tensors = {name: tensor.cuda().contiguous() for name, tensor in part.items()}
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        results = {
            name: torch.empty(
                tuple(context.get_tensor_shape(name)),
                dtype=torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype,
                device="cuda",
            )
            for name in outputs
        }
        for name, tensor in results.items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"{plan}: {builder.name} cannot run the plan: {log.errors()}")
        stream.synchronize()
        for name, tensor in results.items():
            parts[name].append(tensor.cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _library(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError:
        return None


def _timing_cache_file(builder: PlanBuilder, compute_capability: str) -> Path:
    """Where measured kernel times are kept between builds; they hold for one library version on one GPU."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    gpu = torch.cuda.get_device_name().replace(" ", "-")
    return caches / "shelfwise" / f"{builder.name}-{builder.version}-{gpu}-{compute_capability}.timing"


class _Log:
    """TensorRT's messages, collected: it reports why something failed nowhere else."""

    def __init__(self, trt: ModuleType) -> None:
        messages: list[str] = []

        class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    messages.append(message)

        self.logger = Collector()
        self._messages = messages

    def errors(self) -> str:
        """What was reported, in one line."""
        return "; ".join(" ".join(message.split()) for message in self._messages) or "no reason given"
