"""Model configurations (config.pbtxt) of a folder in Triton's layout, and what an ensemble is made of.

`SOURCE` is what a person writes: a configuration and, for Python models, model.py for every model that there is.  A
release holds copies of those that it needs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

SOURCE = Path(__file__).resolve().parents[1] / "model_repository"
CONFIG_FILE = "config.pbtxt"
READINESS_FILE = "readiness.json"
REPORT_FILE = "report.json"
DIGEST = "digest"
"""The parameter of an ensemble by which a caller knows that two servers, or two releases, answer alike."""


class RepositoryError(ValueError):
    """A repository that is not in the state that a command needs."""


def read_config(model: str, folder: Path = SOURCE) -> ModelConfig:
    """The configuration of a model, its name filled in.

    Raises:
        RepositoryError: there is none, or it is no text protobuf; names the file.
    """
    path = folder / model / CONFIG_FILE
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError:
        raise RepositoryError(f"{path} is missing") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path}: {error}") from error
    config.name = config.name or model
    return config


def write_config(config: ModelConfig, folder: Path) -> None:
    """Writes a configuration to a model's folder, without its name: Triton takes the folder's."""
    nameless = ModelConfig()
    nameless.CopyFrom(config)
    nameless.ClearField("name")
    (folder / CONFIG_FILE).write_text(text_format.MessageToString(nameless), encoding="utf-8")


def model_configs(folder: Path) -> list[ModelConfig]:
    """The configurations of all models of a folder, sorted by name. Raises RepositoryError for an unreadable one."""
    return [read_config(path.parent.name, folder) for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))]


def copy_source(model: str, folder: Path) -> None:
    """Copies what a person wrote of a model, its configuration and its version 1, to a folder of models.

    Raises:
        RepositoryError: there is no such model.
    """
    if not (SOURCE / model / CONFIG_FILE).is_file():
        raise RepositoryError(f"there is no model {model!r} in {SOURCE}")
    version = folder / model / "1"
    version.mkdir(parents=True)
    shutil.copyfile(SOURCE / model / CONFIG_FILE, folder / model / CONFIG_FILE)
    for name in ("model.py", ".gitkeep"):
        if (SOURCE / model / "1" / name).is_file():
            shutil.copyfile(SOURCE / model / "1" / name, version / name)


def is_ensemble(config: ModelConfig) -> bool:
    """Whether a model is composed of others."""
    return config.platform == "ensemble" or config.HasField("ensemble_scheduling")


def step_names(ensemble: ModelConfig) -> list[str]:
    """The steps of an ensemble in order, each once."""
    return list(dict.fromkeys(step.model_name for step in ensemble.ensemble_scheduling.step))


def newest_version(model: Path) -> Path | None:
    """The folder of a model's newest version, which is the one that Triton serves; None when there is none."""
    versions = [path for path in model.glob("[0-9]*") if path.name.isdigit() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)
