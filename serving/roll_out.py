"""A running server takes an ensemble's newest version without a failed request and without a mixed answer.

Triton's own reload swaps models one by one: between two swaps a request runs through the old encoder and the new head.
Here all versions are named while they change: the ensemble is pinned to the old steps, the new steps are loaded beside
them, a candidate ensemble over the new steps answers the readiness requests, and only then does the ensemble's own name
move over and the old steps are unloaded.  When the candidate fails, the old version goes on serving.
Needs Triton in explicit model control (`shelfwise serve --model-control`) and the server's own repository folder:
Triton reads the steps' configurations from disk whenever their ensemble is loaded, so they say what is wanted while
this runs and are what they were before at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf import json_format, text_format
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from catalogue.atomic import atomic_file
from export.repository import CONFIG_FILE, RELEASE_FILE, version_models
from export.served import is_ensemble, model_configs
from serving import readiness


class RollOutError(RuntimeError):
    """The new version was not taken into service; the old one goes on."""


@dataclass(frozen=True)
class Versions:
    """What was served before and what is served now."""

    old: int
    new: int


def roll_out(
    url: str,
    repository: Path,
    ensemble: str,
    timeout: float = 120.0,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    headers: Mapping[str, str] | None = None,
) -> Versions:
    """Have the server at `url` serve the newest version of `ensemble` in `repository`.

    `timeout` is how long each model may take to load, in seconds; `credentials` and `headers` as for readiness.check.
    Raises RollOutError when there is no newer version or the server refuses it, and readiness.NotReady when the new
    version does not answer its readiness requests: both leave the old version in service.
    """
    configs = {config.name: config for config in model_configs(repository)}
    if ensemble not in configs or not is_ensemble(configs[ensemble]):
        raise RollOutError(f"{repository} has no ensemble {ensemble}")
    steps = list(dict.fromkeys(step.model_name for step in configs[ensemble].ensemble_scheduling.step))
    client = InferenceServerClient(url, creds=credentials)
    server = _Control(client, timeout, headers)
    try:
        versions = Versions(server.served_version(ensemble), newest_release(repository / ensemble))
        if versions.new == versions.old:
            raise RollOutError(f"{ensemble}: version {versions.old} is the newest and is served already")
        if not all((repository / model / str(versions.old)).is_dir() for model in (ensemble, *steps)):
            raise RollOutError(
                f"{ensemble}: the files of version {versions.old}, which is served, are gone since version "
                f"{versions.new} was exported: start a server on the repository instead"
            )
        if version_models(repository, ensemble, versions.old) != version_models(repository, ensemble, versions.new):
            raise RollOutError(
                f"{ensemble}: version {versions.new} is made of {', '.join(steps)}, version {versions.old} of other "
                "steps: start a server on the repository instead"
            )
        with _Configurations(repository, [ensemble, *steps]) as files:
            files.write(_pinned(configs[ensemble], versions.old))
            for step in steps:
                files.write(_with_versions(configs[step], [versions.old]))
            server.load(ensemble)  # and with it its steps
            candidate = f"{ensemble}_candidate"
            try:
                for step in steps:
                    files.write(_with_versions(configs[step], [versions.old, versions.new]))
                    server.load(step)
                # A name of its own, over a version folder that exists in this request only.
                pinned = _pinned(configs[ensemble], versions.new)
                pinned.name = candidate
                named = {output.label_filename for output in pinned.output if output.label_filename}
                labels = {f"file:{name}": (repository / ensemble / name).read_bytes() for name in named}
                server.load(candidate, pinned, files={f"file:{versions.new}/{RELEASE_FILE}": b"{}"} | labels)
                readiness.ask(client, candidate, configs[ensemble], repository, timeout, headers)
            except (RollOutError, readiness.NotReady):
                with contextlib.suppress(RollOutError):
                    server.unload(candidate)
                for step in steps:
                    files.write(_with_versions(configs[step], [versions.old]))
                    with contextlib.suppress(RollOutError):
                        server.load(step)
                raise
            files.write(_pinned(configs[ensemble], versions.new))
            server.load(ensemble)
            server.unload(candidate)
            for step in steps:
                files.write(_with_versions(configs[step], [versions.new]))
                server.load(step)
        return versions
    finally:
        client.close()


def newest_release(ensemble: Path) -> int:
    """The newest complete version of an ensemble. Raises RollOutError when there is none."""
    versions = [int(path.parent.name) for path in ensemble.glob(f"[0-9]*/{RELEASE_FILE}")]
    if not versions:
        raise RollOutError(f"{ensemble} has no complete version")
    return max(versions)


class _Control:
    """Loading and unloading on one server, its errors as RollOutError."""

    def __init__(self, client: InferenceServerClient, timeout: float, headers: Mapping[str, str] | None) -> None:
        self.client, self.timeout, self.headers = client, timeout, headers

    def served_version(self, model: str) -> int:
        try:
            metadata = self.client.get_model_metadata(model, headers=self.headers, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise RollOutError(f"{model} is not served: {error.message()}") from None
        return max(int(version) for version in metadata.versions)

    def load(self, model: str, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None) -> None:
        text = json_format.MessageToJson(config, preserving_proto_field_name=True) if config is not None else None
        try:
            self.client.load_model(model, headers=self.headers, config=text, files=files, client_timeout=self.timeout)
        except InferenceServerException as error:
            hint = "; serve with --model-control" if "UNAVAILABLE" in str(error.status()) else ""
            raise RollOutError(f"{model} was not loaded: {error.message()}{hint}") from None

    def unload(self, model: str) -> None:
        try:
            self.client.unload_model(model, headers=self.headers, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise RollOutError(f"{model} was not unloaded: {error.message()}") from None


class _Configurations:
    """The configuration files of some models, to be written to and put back as they were."""

    def __init__(self, repository: Path, models: Sequence[str]) -> None:
        self.repository = repository
        self._contents = {model: (repository / model / CONFIG_FILE).read_bytes() for model in models}

    def __enter__(self) -> _Configurations:
        return self

    def __exit__(self, *_: object) -> None:
        for model, content in self._contents.items():
            self._replace(model, content)

    def write(self, config: ModelConfig) -> None:
        self._replace(config.name, text_format.MessageToString(config).encode())

    def _replace(self, model: str, content: bytes) -> None:
        with atomic_file(self.repository / model / CONFIG_FILE) as aside:
            aside.write_bytes(content)


def _with_versions(config: ModelConfig, versions: Sequence[int]) -> ModelConfig:
    """The configuration, for exactly these versions."""
    changed = ModelConfig()
    changed.CopyFrom(config)
    changed.version_policy.specific.versions.extend(versions)
    return changed


def _pinned(ensemble: ModelConfig, version: int) -> ModelConfig:
    """The ensemble's configuration for one version, over steps of that version and with its labels."""
    changed = _with_versions(ensemble, [version])
    for output in changed.output:
        if output.label_filename:
            output.label_filename = f"{version}/{output.label_filename}"
    for step in changed.ensemble_scheduling.step:
        step.model_version = version
    return changed
