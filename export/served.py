"""What of a model repository is served: the models that were exported, in their newest versions.

Triton takes each model's newest version by itself; that those of an ensemble belong together is looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def model_configs(repository: Path) -> list[ModelConfig]:
    """The configurations of what a repository serves, sorted by name: all models but `unexported_models`.

    Raises ValueError for one that cannot be read.
    """
    configs = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = text_format.Parse(path.read_text(), ModelConfig())
        except text_format.ParseError as error:
            raise ValueError(f"{path}: {error}") from None
        config.name = config.name or path.parent.name
        configs.append(config)
    left_out = unexported_models(repository, configs)
    return [config for config in configs if config.name not in left_out]


def unexported_models(repository: Path, configs: Sequence[ModelConfig]) -> set[str]:
    """The ensembles of a repository that no bundle was exported to yet, with the steps that only they use.

    A checkout holds the configurations of every system, and one may be served before another is trained. A model was
    exported when some version of it holds its model file; an ensemble when all of its steps were. One that was released
    counts as exported whatever is missing now: Triton says what. A model that is no step and has no version at all is
    one that other targets of the export need.
    """
    steps = {
        config.name: {step.model_name for step in config.ensemble_scheduling.step}
        for config in configs
        if is_ensemble(config)
    }
    every = set().union(*steps.values())
    built = {name for name in every if any((repository / name).glob("[0-9]*/model.*"))}
    released = {name for name in steps if any((repository / name).glob("[0-9]*/release.json"))}
    waiting = {ensemble for ensemble, names in steps.items() if names - built and ensemble not in released}
    used = set().union(*(names for ensemble, names in steps.items() if ensemble not in waiting))
    lone = {config.name for config in configs} - every - set(steps)
    unbuilt = {name for name in lone if not any((repository / name).glob("[0-9]*/*"))}
    return unbuilt | waiting | set().union(*(steps[ensemble] for ensemble in waiting)) - used


def newest_version(model: Path) -> Path | None:
    """The folder of a model's newest version, which is the one that Triton serves; None when there is none."""
    versions = [path for path in model.glob("[0-9]*") if path.name.isdigit() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)


def mixed_versions(repository: Path, configs: Sequence[ModelConfig]) -> dict[str, str]:
    """Ensembles whose released version would be served with a step of another one: name -> what is found.

    That is what an export leaves that was killed while it published. Ensembles and steps whose configuration says which
    version it wants are left alone.
    """
    chosen = {config.name for config in configs if config.HasField("version_policy")}
    found = {}
    for config in configs:
        version = newest_version(repository / config.name)
        if version is None or config.name in chosen or not (version / "release.json").is_file():
            continue
        for step in config.ensemble_scheduling.step:
            newest = newest_version(repository / step.model_name)
            if newest is None or step.model_version != -1 or step.model_name in chosen:
                continue
            if newest.name != version.name:
                found[config.name] = (
                    f"{config.name} is at version {version.name}, its step {step.model_name} at {newest.name}; "
                    f"an export was interrupted: export again, or remove {newest}"
                )
                break
    return found


def is_ensemble(config: ModelConfig) -> bool:
    """Whether a model is composed of others."""
    return config.platform == "ensemble" or config.HasField("ensemble_scheduling")
