"""Whether a model repository can be served: every configuration against the files of the version that would be.

What Triton refuses at start is found here in a second, without it, and named by file; some of it Triton never notices:
plans for another GPU, an ensemble whose steps are not the version that it was published with, an unreadable readiness
request.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import onnxruntime
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from .onnx_graphs import ExportError, check_versions
from .plans import repository_refusals
from .repository import CONFIG_FILE, READINESS_FILE, RELEASE_FILE, RepositoryError
from .served import mixed_versions, model_configs, newest_version

TRITON_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16"}
"""ONNX Runtime's names of element types -> Triton's, where they are more than upper case."""


def check_repository(repository: Path) -> list[str]:
    """Checks every model of a repository that is served; systems that were not exported yet are not.

    Returns:
        The models' names.

    Raises:
        RepositoryError: naming the first file that does not fit, or that there is no model.
        ValueError: a plan has no readable record.
    """
    try:
        configs = {config.name: config for config in model_configs(repository)}
    except ValueError as error:
        raise RepositoryError(str(error)) from error
    if not configs:
        raise RepositoryError(f"{repository} holds no exported model (a folder NAME with {CONFIG_FILE} and a version)")
    mixed = mixed_versions(repository, list(configs.values()))
    if mixed:
        raise RepositoryError("; ".join(mixed.values()))
    for model, config in configs.items():
        version = _newest_version(repository / model)
        if config.HasField("ensemble_scheduling"):
            _check_ensemble(repository, config, configs, version)
        else:
            _check_model(config, version)
        for output in config.output:
            if output.label_filename and not (repository / model / output.label_filename).is_file():
                raise RepositoryError(
                    f"{repository / model / output.label_filename} is missing: {CONFIG_FILE} names it"
                )
    refusals = repository_refusals(repository)
    if refusals:
        raise RepositoryError("; ".join(f"{model}: {reason}" for model, reason in refusals.items()))
    return sorted(configs)


def _newest_version(model: Path) -> Path:
    version = newest_version(model)
    if version is None:
        raise RepositoryError(f"{model} has no version (a folder with a number); export a bundle")
    return version


def _check_ensemble(repository: Path, config: ModelConfig, configs: dict[str, ModelConfig], version: Path) -> None:
    if not (version / RELEASE_FILE).is_file():
        raise RepositoryError(f"{version} has no {RELEASE_FILE}: its export was interrupted; export again")
    produced = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            raise RepositoryError(f"{config.name}: step {step.model_name} is no model of {repository}")
        step_config = configs[step.model_name]
        if step_config.max_batch_size < config.max_batch_size:
            raise RepositoryError(
                f"{config.name} takes {config.max_batch_size} rows, its step {step.model_name} only "
                f"{step_config.max_batch_size}"
            )
        missing = set(step.input_map.values()) - produced
        if missing:
            raise RepositoryError(
                f"{config.name}: step {step.model_name} reads {', '.join(sorted(missing))}, which no step before gives"
            )
        produced |= set(step.output_map.values())
    missing = {tensor.name for tensor in config.output} - produced
    if missing:
        raise RepositoryError(f"{config.name}: no step gives the output {', '.join(sorted(missing))}")
    path = repository / config.name / READINESS_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path}: {error}") from error
    inputs = {tensor.name for tensor in config.input}
    if not isinstance(rows, list) or not rows or any(inputs - set(row) for row in rows):
        raise RepositoryError(f"{path} must hold a list of requests with values for {', '.join(sorted(inputs))}")


def _check_model(config: ModelConfig, version: Path) -> None:
    if (version / "model.onnx").is_file():
        _check_onnx(config, version / "model.onnx")
    elif (version / "model.py").is_file():
        try:
            ast.parse((version / "model.py").read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise RepositoryError(f"{version / 'model.py'}: {error}") from error
    else:
        plans = {path.name for path in version.glob("*.plan")}
        named = set(config.cc_model_filenames.values()) | {config.default_model_filename or "model.plan"}
        if not plans:
            raise RepositoryError(f"{version} holds no model.onnx, model.py or plan")
        if named - plans:
            raise RepositoryError(f"{version} lacks {', '.join(sorted(named - plans))}, which {CONFIG_FILE} names")


def _check_onnx(config: ModelConfig, path: Path) -> None:
    try:
        check_versions(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except ExportError as error:
        raise RepositoryError(str(error)) from error
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise RepositoryError(f"{path} cannot be loaded: {error}") from error
    for kind, configured, tensors in (
        ("input", config.input, session.get_inputs()),
        ("output", config.output, session.get_outputs()),
    ):
        found = {tensor.name: tensor for tensor in tensors}
        for tensor in tensors:
            if config.max_batch_size and (not tensor.shape or isinstance(tensor.shape[0], int)):
                raise RepositoryError(
                    f"{path}: {kind} {tensor.name} has shape {tensor.shape}; its first axis must be the batch, since "
                    f"{CONFIG_FILE} has max_batch_size {config.max_batch_size}"
                )
        for entry in configured:
            if entry.name not in found:
                raise RepositoryError(
                    f"{path} has no {kind} {entry.name}, which {CONFIG_FILE} names; it has {sorted(found)}"
                )
            if kind == "input" and entry.allow_ragged_batch and len(found[entry.name].shape) != 1:
                raise RepositoryError(
                    f"{path}: input {entry.name} has shape {found[entry.name].shape}; {CONFIG_FILE} allows ragged "
                    "batches, which come in one dimension"
                )
            element = found[entry.name].type.removeprefix("tensor(").removesuffix(")")
            if DataType.Name(entry.data_type) != f"TYPE_{TRITON_TYPES.get(element, element.upper())}":
                raise RepositoryError(
                    f"{path}: {kind} {entry.name} is {found[entry.name].type}, {CONFIG_FILE} says "
                    f"{DataType.Name(entry.data_type)}"
                )
