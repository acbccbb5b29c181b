"""The way of every system into a repository: graphs, precision, parity gate, plans, files, release.

A system says what it is made of (`ServedSystem`), the caller what will run it (`ExportTarget`); the rest is the same
for all.  Graphs are compared in a chain (`export.chain`): the last outputs are those that a caller would get, and their
deviation from PyTorch float32 is the system's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from tritonclient.grpc.model_config_pb2 import ModelConfig

from repository.configs import READINESS_FILE, REPORT_FILE, copy_source, read_config, step_names, write_config
from repository.plans import TENSORRT, PlanRecord
from repository.publish import publish, staging

from .chain import Chain, Values
from .onnx_graphs import ExportError, GraphSpec, export_onnx, file_bytes, fuse_onnx, operator_counts
from .parity import OutputParity, ParityError, ParityLimits, compare, failures, run_onnx, run_torch, worst
from .precision import LIMITS, Precision, Runtime, choose_precision, lower_graph
from .tensorrt import PLAN_FILE, PlanBuilder, build_plan, plan_builder, plan_file, run_plan

Summary = dict[str, Any]


@dataclass(frozen=True)
class TorchModel:
    """A model that a Python model serves in PyTorch, on a GPU: what a graph has no operator for.

    Args:
        graph: the same as a module, in float32: its name, inputs and outputs, and what to compare with.
        write: writes model.py, all that it imports and its weights to a folder, to compute in a precision.
        run: every output on a batch of inputs, of what was written to a folder, on the CPU.
        config: the model's configuration.
    """

    graph: GraphSpec
    write: Callable[[Path, Precision], None]
    run: Callable[[Path, Mapping[str, Tensor]], dict[str, np.ndarray]]
    config: ModelConfig


@dataclass(frozen=True)
class ServedSystem:
    """What there is to export of a trained system.

    Args:
        graphs: its ONNX models, in the order in which they depend on each other.
        inputs: batches of real inputs [N, …] by name for parity; shapes behind the batch axis may differ between them.
        calibration: the same for int8 and fp8 ranges.
        write_files: writes the files of the Python models, given the function from a model's name to its folder.
        ensembles: its ensembles, each with requests that a ready server must answer, {input: value} each.
        release: what else release.json should say.
        axis_ranges: smallest, most frequent and largest length of dynamic axes other than the batch, by name.
        fused: the step of the ensembles that is all graphs as one ONNX file. For TensorRT every graph is a step of its
            own in its place. None: the graphs are the ensemble's steps.
        torch_models: its models that PyTorch serves, instead of a graph.
        precisions: what it can be served in, its default first; what the runtime can when empty.
        single: the Python model that is all steps of the ensemble in one process. None: there is none.
        faults: what is wrong with the files' answers beyond each output's limits, a sentence each, from the answers of
            PyTorch float32 and of the files, batch by batch.
    """

    ensembles: Mapping[str, Sequence[Mapping[str, Any]]]
    graphs: Sequence[GraphSpec]
    inputs: Sequence[Mapping[str, Tensor]]
    calibration: Sequence[Mapping[str, Tensor]]
    write_files: Callable[[Callable[[str], Path]], None]
    release: Mapping[str, Any]
    axis_ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    fused: str | None = None
    torch_models: Sequence[TorchModel] = ()
    precisions: Sequence[Precision] = ()
    single: str | None = None
    faults: Callable[[Sequence[Values], Sequence[Values]], Sequence[str]] = lambda expected, served: ()


@dataclass(frozen=True)
class ExportTarget:
    """What will run an export.

    Args:
        runtime: ONNX Runtime on a CPU or on a GPU, or TensorRT.
        precision: of the graphs that allow it; the runtime's default when None.
        generations: compute capabilities ("8.9") to build plans for without a GPU; empty: this machine's.
        version_compatible: plans that later TensorRT versions run as well.
        single: all steps of the ensemble in one process, for one caller's latency on a CPU.
    """

    runtime: Runtime = Runtime.CPU
    precision: Precision | None = None
    generations: Sequence[str] = ()
    version_compatible: bool = False
    single: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What an export published: the release, and how each graph compares with PyTorch on real inputs.

    Args:
        parity: a comparison per output, by graph.
        bytes: size of what is served, by graph.
        precision: what each graph computes in.
        kept: nodes left in float32 because parity asked for it ("operator name"), by graph.
    """

    repository: Path
    release: int
    parity: dict[str, list[OutputParity]]
    bytes: dict[str, int]
    precision: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)


def export_system(
    system: ServedSystem,
    repository: Path,
    target: ExportTarget | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Publishes a system as part of the next release of a repository, or nothing.

    Raises:
        export.onnx_graphs.ExportError: a graph cannot be exported, or not for that target.
        export.parity.ParityError: a graph answers differently; the old release stays.
        repository.configs.RepositoryError: the repository cannot take it.
    """
    target = target or ExportTarget()
    if target.single and (target.runtime is not Runtime.CPU or system.single is None):
        raise ExportError(
            f"{', '.join(system.ensembles)}: no single form for {target.runtime.value}: export the ensemble"
        )
    precision = choose_precision(target.runtime, target.precision, system.precisions)
    builder = plan_builder(target.generations) if target.runtime is Runtime.TENSORRT else None
    report = ExportReport(repository, 0, {}, {})
    chain = Chain(system.graphs, system.inputs)
    calibration = Chain(system.graphs, system.calibration)
    fused = system.fused if target.runtime is not Runtime.TENSORRT else None
    ensembles = [read_config(name) if fused else split_step(name, system) for name in system.ensembles]
    with staging(repository) as staged, staging(repository) as aside:

        def path(model: str) -> Path:
            return staged / model / "1"

        for model in dict.fromkeys(name for config in ensembles for name in (*step_names(config), config.name)):
            copy_source(model, staged)
        if not fused:
            for config in ensembles:
                write_config(config, staged / config.name)
        summaries: dict[str, Summary] = {}
        exported: dict[str, ExportedGraph] = {}
        for graph in system.graphs:
            folder = aside / graph.name if fused else path(graph.name)
            folder.mkdir(exist_ok=True)
            own = Precision.FP32 if graph.float32_only else precision
            progress(f"{graph.name}: PyTorch → ONNX, {own}")
            file = exported[graph.name] = _export_graph(
                graph, folder, own, target.runtime, chain, calibration, LIMITS[precision]
            )
            summary = summaries[graph.name] = file.summary
            if builder is not None and not graph.float32_only:
                progress(f"{graph.name}: {builder.name} plans for {', '.join(builder.compute_capabilities)}")
                summary |= _replace_by_plans(graph, file.path, builder, system, target, own, chain, LIMITS[precision])
            elif not fused and file.runnable != file.path:
                file.runnable.unlink()
            report.parity[graph.name], report.kept[graph.name] = file.parity, summary["kept_in_float32"]
            report.precision[graph.name], report.bytes[graph.name] = own.value, summary["bytes"]
        if faults := system.faults(chain.expected, chain.served):
            raise ParityError("; ".join(faults))
        if fused:
            progress(f"{fused}: {' + '.join(exported)} as one graph")
            summaries = {fused: _fuse(path(fused) / "model.onnx", system, exported, chain)}
        for model in system.torch_models:
            name = model.graph.name
            progress(f"{name}: a Python model, {precision}")
            parity = _write_torch_model(model, path(name), chain, precision)
            size = sum(file.stat().st_size for file in path(name).rglob("*") if file.is_file())
            summaries[name] = {
                "precision": precision.value,
                "parity": [asdict(output) for output in parity],
                "parity_measured_on": "cpu",
                "bytes": size,
            }
            report.parity[name], report.kept[name] = parity, []
            report.precision[name], report.bytes[name] = precision.value, size
        for name, summary in summaries.items():
            (path(name) / REPORT_FILE).write_text(json.dumps(summary, indent=2) + "\n")
        progress("the Python models' files")
        system.write_files(path)
        if target.single:
            progress(f"{system.single}: all steps in one process")
            for config in ensembles:
                as_one_step(config, str(system.single), staged)
        for name, requests in system.ensembles.items():
            readiness = json.dumps(requests, ensure_ascii=False, indent=2)
            (staged / name / READINESS_FILE).write_text(readiness, encoding="utf-8")
        about = {"target": target.runtime.value, "precision": precision.value, **system.release}
        about["form"] = "single" if target.single else "ensemble"
        release = publish(repository, staged, dict.fromkeys(system.ensembles, about))
    return ExportReport(repository, release.number, report.parity, report.bytes, report.precision, report.kept)


@dataclass(frozen=True)
class ExportedGraph:
    """A graph's ONNX file, the one to run in its place here (its twin for a GPU's floats), and what is reported."""

    path: Path
    runnable: Path
    parity: list[OutputParity]
    summary: Summary


def _export_graph(
    graph: GraphSpec,
    folder: Path,
    precision: Precision,
    runtime: Runtime,
    chain: Chain,
    calibration: Chain,
    limits: ParityLimits,
) -> ExportedGraph:
    """Writes a graph in a precision, through the parity gate; from then on the chain answers as its file does."""
    path = folder / "model.onnx"
    export_onnx(graph, path)
    operators = operator_counts(path)
    lowered = lower_graph(graph, path, precision, runtime, chain, calibration.inputs(graph))
    # Fused for this CPU, a file meant for a GPU would not compute in its own precision.
    exact = runtime is not Runtime.CPU and precision is not Precision.FP32
    # What comes out of a float32 graph behind reduced ones deviates as they do: the system's limits.
    compared = chain.compare(graph, lowered.runnable, exact=exact)
    missed = failures(compared, limits)
    if missed:
        raise ParityError(f"{graph.name}: the exported model differs from PyTorch: {'; '.join(missed)}")
    chain.take(graph, lowered.runnable, exact=exact)
    parity = [output for output in compared if output.output in graph.outputs]
    summary = {
        "precision": precision.value,
        "kept_in_float32": lowered.kept,
        "parity": [asdict(output) for output in parity],
        "bytes": file_bytes(path),
        "operators": operator_counts(path),
        "operators_in_float32": operators,
    }
    return ExportedGraph(path, lowered.runnable, parity, summary)


def _replace_by_plans(
    graph: GraphSpec,
    path: Path,
    builder: PlanBuilder,
    system: ServedSystem,
    target: ExportTarget,
    precision: Precision,
    chain: Chain,
    limits: ParityLimits,
) -> Summary:
    """Puts plans and the configuration that they need in the place of an ONNX file; returns what to report of them."""
    config = read_config(graph.name)
    largest = config.max_batch_size or 1
    preferred = max(config.dynamic_batching.preferred_batch_size, default=max(1, largest // 4))
    records = {
        name: build_plan(
            builder,
            generation,
            path,
            path.with_name(name),
            batch_sizes=(1, preferred, largest),
            precision=precision.value,
            axis_ranges=system.axis_ranges,
            version_compatible=target.version_compatible,
        )
        for generation in builder.compute_capabilities
        for name in [plan_file(builder, generation)]
    }
    summary: Summary = {
        "plans": {name: asdict(record) for name, record in records.items()},
        "bytes": sum(path.with_name(name).stat().st_size for name in records),
    }
    if builder.name == TENSORRT:
        parity = _check_plan(graph, builder, path, chain.inputs(graph), limits)
        summary["parity"] = [asdict(output) for output in parity]
    _write_plan_config(graph.name, path.parent, records)
    for file in path.parent.glob("*.onnx*"):  # the file, weights beside it, its twin
        file.unlink()
    return summary


def _fuse(path: Path, system: ServedSystem, exported: Mapping[str, ExportedGraph], chain: Chain) -> Summary:
    """Writes all graphs as one file, once it answers as they did one after the other."""
    runnable = {name: file.runnable for name, file in exported.items()}
    files = {name: file.path for name, file in exported.items()}
    only_where = {graph.name: graph.only_where for graph in system.graphs if graph.only_where}
    fuse_onnx(runnable, path, only_where)
    _check_fused(path, system, chain.served, exact=runnable != files)
    fuse_onnx(files, path, only_where)
    return {
        "bytes": file_bytes(path),
        "operators": operator_counts(path),
        "graphs": {name: file.summary for name, file in exported.items()},
    }


def split_step(ensemble: str, system: ServedSystem) -> ModelConfig:
    """An ensemble's configuration with a step for every graph in the place of the one that is all of them."""
    config = read_config(ensemble)
    steps = list(config.ensemble_scheduling.step)
    del config.ensemble_scheduling.step[:]
    for step in steps:
        if step.model_name != system.fused:
            config.ensemble_scheduling.step.append(step)
            continue
        for graph in system.graphs:
            part = config.ensemble_scheduling.step.add(model_name=graph.name, model_version=-1)
            part.input_map.update({name: step.input_map.get(name, name) for name in graph.inputs})
            names = [*graph.outputs, *([graph.names.output] if graph.names else [])]
            part.output_map.update({name: step.output_map.get(name, name) for name in names})
    return config


def as_one_step(ensemble: ModelConfig, single: str, staged: Path) -> None:
    """Puts one Python model in the place of all steps of a staged ensemble, with the files that they read.

    A step's own model.py stands beside the model's as STEP.py, and its model.onnx, by which Triton would take the model
    for one of another backend, as network.onnx.
    """
    names = step_names(ensemble)
    first, last = ensemble.ensemble_scheduling.step[0], ensemble.ensemble_scheduling.step[-1]
    copy_source(single, staged)
    for name in names:
        for file in (staged / name / "1").iterdir():
            own = {"model.py": f"{name}.py", "model.onnx": "network.onnx"}.get(file.name, file.name)
            file.rename(staged / single / "1" / own)
        shutil.rmtree(staged / name)
    whole = ModelConfig()
    whole.CopyFrom(ensemble)
    del whole.ensemble_scheduling.step[:]
    step = whole.ensemble_scheduling.step.add(model_name=single, model_version=-1)
    step.input_map.update(first.input_map)
    step.output_map.update(last.output_map)
    write_config(whole, staged / ensemble.name)


def _check_fused(path: Path, system: ServedSystem, answered: Sequence[Mapping[str, Tensor]], *, exact: bool) -> None:
    """That the graphs in one file answer what they answered one after the other."""
    given = {output for graph in system.graphs for output in graph.outputs}
    taken = {tensor for graph in system.graphs for tensor in graph.inputs}
    inputs = (taken - given) | {graph.only_where for graph in system.graphs if graph.only_where}
    outputs = [output for graph in system.graphs for output in graph.outputs if output not in taken]
    for batch in answered:
        found = run_onnx(path, {tensor: batch[tensor] for tensor in inputs}, outputs, exact=exact)
        missed = failures([compare(output, batch[output].numpy(), found[output]) for output in outputs], ParityLimits())
        if missed:
            raise ParityError(f"{system.fused}: the fused graphs differ from the single ones: {'; '.join(missed)}")


def _check_plan(
    graph: GraphSpec, builder: PlanBuilder, path: Path, batches: Sequence[Mapping[str, Tensor]], limits: ParityLimits
) -> list[OutputParity]:
    """The parity gate for the plan itself, on the GPU that it was built for."""
    rows = read_config(graph.name).max_batch_size or 1
    comparisons = []
    for batch in batches:
        expected = run_torch(graph, batch)
        found = run_plan(builder, path.with_name(PLAN_FILE), batch, graph.outputs, rows)
        comparisons.append(
            [compare(name, expected[name], found[name], choice=name in graph.choices) for name in graph.outputs]
        )
    parity = worst(comparisons)
    missed = failures(parity, limits)
    if missed:
        raise ParityError(f"{graph.name}: the TensorRT plan differs from PyTorch: {'; '.join(missed)}")
    return parity


def _write_torch_model(model: TorchModel, folder: Path, chain: Chain, precision: Precision) -> list[OutputParity]:
    """Writes what PyTorch serves and its configuration, through the parity gate: as written, against float32."""
    model.write(folder, precision)
    write_config(model.config, folder.parent)
    comparisons = []
    for batch in chain.expected:
        inputs = {name: batch[name] for name in model.graph.inputs}
        expected, found = run_torch(model.graph, inputs), model.run(folder, inputs)
        comparisons.append(
            [
                compare(name, expected[name], found[name], choice=name in model.graph.choices)
                for name in model.graph.outputs
            ]
        )
    parity = worst(comparisons)
    missed = failures(parity, LIMITS[precision])
    if missed:
        raise ParityError(f"{model.graph.name}: the Python model differs from PyTorch: {'; '.join(missed)}")
    return parity


def _write_plan_config(model: str, folder: Path, records: Mapping[str, PlanRecord]) -> None:
    """The model's configuration with what a plan needs, in the source's place for as long as the version is served."""
    config = read_config(model)
    config.backend = "tensorrt"
    config.default_model_filename = next(iter(records))
    for name, record in records.items():
        config.cc_model_filenames[record.compute_capability] = name
    write_config(config, folder.parent)


def copy_module(module: ModuleType, folder: Path) -> None:
    """Puts a module of the project, a file or a package, into a folder of served files, under its own name."""
    source = Path(module.__file__ or "")
    if source.name == "__init__.py":
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source.parent, folder / source.parent.name, ignore=ignored)
    else:
        shutil.copyfile(source, folder / source.name)
