"""Whether a model repository can be served: every configuration against the files of the version that would be.

What Triton refuses at start is found here in a second, without it, and named by file; some of it Triton never notices:
files that are not those that were published, plans for another GPU, an unreadable readiness request.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from .configs import (
    CONFIG_FILE,
    READINESS_FILE,
    RepositoryError,
    is_ensemble,
    model_configs,
    newest_version,
)
from .plans import repository_refusals
from .release import current, verify

MAX_OPSET = 21
MAX_IR_VERSION = 10
TRITON_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16"}
"""ONNX Runtime's names of element types -> Triton's, where they are more than upper case."""


def check_repository(repository: Path) -> list[str]:
    """Checks the current release of a repository: its digests, and every model.

    Returns:
        The models' names.

    Raises:
        RepositoryError: naming the first file that does not fit, or that there is no model.
        ValueError: a plan has no readable record.
    """
    folder = current(repository)
    verify(folder)
    configs = {config.name: config for config in model_configs(folder)}
    for model, config in configs.items():
        version = _newest_version(folder / model)
        if is_ensemble(config):
            _check_ensemble(folder, config, configs)
        else:
            _check_model(config, version)
        for output in config.output:
            if output.label_filename and not (folder / model / output.label_filename).is_file():
                raise RepositoryError(f"{folder / model / output.label_filename} is missing: {CONFIG_FILE} names it")
    refusals = repository_refusals(folder)
    if refusals:
        raise RepositoryError("; ".join(f"{model}: {reason}" for model, reason in refusals.items()))
    return sorted(configs)


def check_versions(path: Path) -> None:
    """Refuses an ONNX file that the ONNX Runtime in Triton's container cannot read.

    Raises:
        RepositoryError: naming file, what it has and what would be right.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise RepositoryError(f"{path} is no ONNX file: {error}") from error
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if not 0 < opset <= MAX_OPSET:
        raise RepositoryError(f"{path} has opset {opset}; Triton's ONNX Runtime reads 1 to {MAX_OPSET}")
    if model.ir_version > MAX_IR_VERSION:
        raise RepositoryError(
            f"{path} has IR version {model.ir_version}; Triton's ONNX Runtime reads up to {MAX_IR_VERSION}"
        )


def _newest_version(model: Path) -> Path:
    version = newest_version(model)
    if version is None:
        raise RepositoryError(f"{model} has no version (a folder with a number); export a bundle")
    return version


def _check_ensemble(repository: Path, config: ModelConfig, configs: dict[str, ModelConfig]) -> None:
    produced = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            raise RepositoryError(f"{config.name}: step {step.model_name} is no model of {repository}")
        if step.model_version > 0 and not (repository / step.model_name / str(step.model_version)).is_dir():
            raise RepositoryError(
                f"{config.name}: wants version {step.model_version} of its step {step.model_name}, which is not there"
            )
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
    except RepositoryError:
        raise
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
