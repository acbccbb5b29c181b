"""A running server takes another release without a failed request and without a mixed answer.

Triton's own reload swaps models one by one: between two swaps a request runs through the old encoder and the new head.
Here what is new is loaded beside what is served, under names of its own ("categorizer_release_8"); a candidate ensemble
over it answers the readiness requests; only then do the ensembles change over, each in one step.  Once the release is
current and nobody uses the old steps any more, the new ones are loaded under their plain names and the others unloaded,
so that the server ends as a start would have made it.  Whatever fails before, the old release goes on serving; whatever
a killed roll-out left is seen by asking the server, and the next one goes on from there.
Needs Triton in explicit model control, reading its models through a link in the repository (`shelfwise serve
--model-control` makes it, and tells its name as the server's).
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from repository import plans
from repository.configs import CONFIG_FILE, is_ensemble, model_configs, read_config, step_names, write_config
from repository.publish import TEMPORARY_PREFIX, locked, point, served_link
from repository.release import CURRENT, Release, current
from serving import readiness


class RollOutError(RuntimeError):
    """The release was not taken into service; what was served goes on."""


@dataclass(frozen=True)
class RollOut:
    """The release that is served now, and the ensembles that changed: name -> version before (None: new) and now."""

    release: int
    changed: dict[str, tuple[int | None, int]]


def roll_out(
    url: str,
    repository: Path,
    number: int | None = None,
    timeout: float = 120.0,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    headers: Mapping[str, str] | None = None,
) -> RollOut:
    """Have the server at `url` serve a release of `repository`, which becomes its current one.

    `number` is the release's, the current one's when None, earlier or later than what is served; `timeout` is how long
    each model may take to load, in seconds; `credentials` and `headers` as for readiness.check.
    Raises RollOutError when the release is served already or the server refuses it, RepositoryError when the release's
    files are not as they were published, and readiness.NotReady when it does not answer its readiness requests: all
    leave what was served in service and the current release as it was.
    """
    repository = repository.absolute()
    wanted = current(repository) if number is None else repository / str(number)
    with locked(repository), contextlib.closing(_Server(url, timeout, credentials, headers)) as server:
        release = Release.load(wanted)
        release.verify()
        refusals = plans.repository_refusals(release.folder)
        if refusals:
            raise RollOutError("; ".join(f"{model}: {reason}" for model, reason in refusals.items()))
        link = served_link(repository, server.name())
        if not link.is_symlink():
            raise RollOutError(
                f"{url} does not read its models through {link}: it serves another repository, or was started without "
                "--model-control"
            )
        ensembles = [config for config in model_configs(release.folder) if is_ensemble(config)]
        loaded = server.loaded()
        changed = {
            config.name: (loaded.get(config.name), release.version(config.name))
            for config in ensembles
            if loaded.get(config.name) != release.version(config.name)
        }
        if not changed and (repository / CURRENT).resolve() == release.folder and set(loaded) == _models(ensembles):
            raise RollOutError(f"release {release.number} is served already")
        beside, before = repository / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}", link.resolve()
        try:
            if changed:
                new = _lay_beside(beside, release, [c for c in ensembles if c.name in changed], loaded)
                point(link, beside)
                _change_over(server, release, new, timeout)
            point(repository / CURRENT, release.folder)
            before = release.folder
            _tidy(server, release, ensembles, link, beside.with_name(f"{beside.name}-plain"))
        finally:
            point(link, before)
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(beside.with_name(f"{beside.name}-plain"), ignore_errors=True)
    return RollOut(release.number, changed)


def _lay_beside(
    folder: Path, release: Release, ensembles: Iterable[ModelConfig], loaded: Mapping[str, int]
) -> list[ModelConfig]:
    """Writes a folder of models for Triton: ensembles and their candidates, over new steps under names of their own.

    Returns the ensembles' configurations over those steps.
    """
    folder.mkdir()
    changed = []
    for ensemble in ensembles:
        config = ModelConfig()
        config.CopyFrom(ensemble)
        for part in config.ensemble_scheduling.step:
            if loaded.get(part.model_name) == release.version(part.model_name):
                _keep(folder, release, part.model_name)
            else:
                part.model_name = _renew(folder, release, read_config(part.model_name, release.folder), beside=True)
        for candidate in (False, True):
            _renew(folder, release, config, beside=candidate)
        changed.append(config)
    return changed


def _renew(folder: Path, release: Release, config: ModelConfig, *, beside: bool) -> str:
    """Puts a model where Triton loads it anew: it does so only for files that are younger than those it has loaded.

    Returns the name that it has there.
    """
    name = _beside(config.name, release) if beside else config.name
    if not (folder / name).exists():  # a step may be of several ensembles
        (folder / name).mkdir()
        for path in (release.folder / config.name).iterdir():
            if path.name != CONFIG_FILE:
                (folder / name / path.name).symlink_to(path)
        write_config(config, folder / name)
    return name


def _keep(folder: Path, release: Release, model: str) -> None:
    """Puts a model where Triton sees that it has it loaded."""
    if not (folder / model).exists():
        (folder / model).symlink_to(release.folder / model)


def _change_over(server: _Server, release: Release, ensembles: Sequence[ModelConfig], timeout: float) -> None:
    """Loads candidates, asks them, and has the ensembles' own names follow."""
    candidates = {config.name: _beside(config.name, release) for config in ensembles}
    try:
        for config in ensembles:
            server.load(candidates[config.name])  # and with it its steps
            readiness.ask(server.client, candidates[config.name], config, release.folder, timeout, server.headers)
    except (RollOutError, readiness.NotReady):
        for config in ensembles:
            for name in (candidates[config.name], *step_names(config)):
                if name.endswith(_beside("", release)):
                    with contextlib.suppress(RollOutError):
                        server.unload(name)
        raise
    for name, candidate in candidates.items():
        server.load(name)
        server.unload(candidate)


def _tidy(server: _Server, release: Release, ensembles: Sequence[ModelConfig], link: Path, folder: Path) -> None:
    """Brings the server to what a start on the release would load: every step under its plain name, nothing else."""
    loaded, models = server.loaded(), _models(ensembles)
    for name in set(loaded) - models:
        if is_ensemble(server.config(name)):
            server.unload(name)
    renewed = [c for c in ensembles if set(step_names(server.config(c.name))) != set(step_names(c))]
    steps = {step for config in renewed for step in step_names(config) if loaded.get(step) != release.version(step)}
    folder.mkdir()
    for name in models:
        if name in steps or name in {config.name for config in renewed}:
            _renew(folder, release, read_config(name, release.folder), beside=False)
        else:
            _keep(folder, release, name)
    point(link, folder)
    for name in (*sorted(steps), *(config.name for config in renewed)):
        server.load(name)
    for name in set(server.loaded()) - models:
        server.unload(name)


def _beside(model: str, release: Release) -> str:
    """The name of a release's model while another one is served."""
    return f"{model}_release_{release.number}"


def _models(ensembles: Iterable[ModelConfig]) -> set[str]:
    return {name for config in ensembles for name in (config.name, *step_names(config))}


class _Server:
    """Loading, unloading and what is loaded on one server, its errors as RollOutError."""

    def __init__(
        self,
        url: str,
        timeout: float,
        credentials: grpc.ChannelCredentials | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.url, self.timeout, self.headers = url, timeout, headers
        self.client = readiness.connect(url, credentials)

    def close(self) -> None:
        self.client.close()

    def name(self) -> str:
        """The server's own name."""
        try:
            name = self.client.get_server_metadata(headers=self.headers, client_timeout=self.timeout).name
        except InferenceServerException as error:
            raise RollOutError(f"{self.url} does not answer: {error.message()}") from None
        if not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
            raise RollOutError(f"{self.url} calls itself {name!r}, which no server of this repository is called")
        return name

    def loaded(self) -> dict[str, int]:
        """Models that are ready, and their version; the repository index knows only those whose files are there."""
        try:
            statistics = self.client.get_inference_statistics(headers=self.headers, client_timeout=self.timeout)
            return {
                model.name: int(model.version)
                for model in statistics.model_stats
                if self.client.is_model_ready(model.name, model.version, self.headers, client_timeout=self.timeout)
            }
        except InferenceServerException as error:
            raise RollOutError(f"{self.url}: {error.message()}") from None

    def config(self, model: str) -> ModelConfig:
        """The configuration of a model as it is served."""
        try:
            return self.client.get_model_config(model, headers=self.headers, client_timeout=self.timeout).config
        except InferenceServerException as error:
            raise RollOutError(f"{model} is not served: {error.message()}") from None

    def load(self, model: str) -> None:
        try:
            self.client.load_model(model, headers=self.headers, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise RollOutError(f"{model} was not loaded: {error.message()}") from None

    def unload(self, model: str) -> None:
        try:
            self.client.unload_model(model, headers=self.headers, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise RollOutError(f"{model} was not unloaded: {error.message()}") from None
