"""`shelfwise export --form single`: one process in the place of the steps, and the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient
from typer.testing import CliRunner

import shelfwise
from repository.release import current
from serving import readiness
from serving.server import TritonServer
from tests.serving.conftest import connect
from tests.serving.graphs import draw_image
from tests.serving.test_categorize import TITLE, assert_same, categorize, refusal


@pytest.fixture(scope="module")
def repository(categorize_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "repository"
    command = ["export", str(categorize_bundle), "--repository", str(folder), "--form", "single"]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 0, result.output
    return current(folder)


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=log) as running:
        yield running


@pytest.fixture(scope="module")
def single(server: TritonServer) -> InferenceServerClient:
    return connect(server)


@pytest.fixture(scope="module")
def steps(categorize_server: TritonServer) -> InferenceServerClient:
    return connect(categorize_server)


def test_one_model_stands_in_the_place_of_the_steps(repository: Path, server: TritonServer) -> None:
    models = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    assert models == {"categorize", "product_categorizer"}
    assert readiness.check(server.url, repository) == ["categorize"]
    result = CliRunner().invoke(shelfwise.app, ["repository", "check", "--repository", str(repository.parent)])
    assert result.exit_code == 0, result.output


def test_answers_are_those_of_the_ensemble_alone_and_in_a_batch(
    single: InferenceServerClient, steps: InferenceServerClient
) -> None:
    images = [draw_image(colour=colour) for colour in ("navy", "red", "green", "olive", "pink")] + [b""]
    titles = [TITLE, b"", b"Plain mug", b"Desk lamp", b"", b"Striped shirt"]
    expected = categorize(steps, images, titles)
    together = categorize(single, images, titles)
    assert_same(together, expected)
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        assert_same(categorize(single, [image], [title]), expected[row])
    assert together.category.dtype == expected.category.dtype
    assert isinstance(together.category[0, 0], bytes)


def test_what_cannot_be_answered_is_refused_as_by_the_ensemble(
    single: InferenceServerClient, steps: InferenceServerClient
) -> None:
    for image, title in ((b"", b""), (b"no image", b"Mug"), (draw_image()[:-300], b"Mug"), (b"", b"\xff\xfe")):
        messages = {refusal(partial(categorize, asked, [image], [title])) for asked in (single, steps)}
        assert len({message.replace("prepare_product", "product_categorizer") for message in messages}) == 1
    assert categorize(single, [draw_image()], [TITLE]).category_id.shape[0] == 1


def test_a_system_without_a_single_form_says_so(colour_bundle: Path, tmp_path: Path) -> None:
    command = ["export", str(colour_bundle), "--repository", str(tmp_path / "repository"), "--form", "single"]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 1
    assert "no single form" in result.output
