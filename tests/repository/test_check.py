"""The repository check: a fresh export passes; whatever does not fit is named by file, without Triton."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import shelfwise
from repository.check import check_repository
from repository.configs import RepositoryError
from repository.plans import TENSORRT_RTX, PlanRecord
from tests.releases import copy_to_change


@pytest.fixture
def repository(categorize_repository: Path, tmp_path: Path) -> Path:
    return copy_to_change(categorize_repository, tmp_path / "repository")


def test_a_fresh_export_fits(categorize_repository: Path) -> None:
    assert "categorize" in check_repository(categorize_repository)
    result = CliRunner().invoke(shelfwise.app, ["repository", "check", "--repository", str(categorize_repository)])
    assert result.exit_code == 0
    assert "fit their files" in result.output


def test_types_of_tensors_are_checked(colour_repository: Path, tmp_path: Path) -> None:
    assert "match_colours" in check_repository(colour_repository)
    copy = copy_to_change(colour_repository, tmp_path / "repository")
    path = copy / "colour_matcher" / "config.pbtxt"
    assert "TYPE_BOOL" in path.read_text()
    path.write_text(path.read_text().replace("TYPE_BOOL", "TYPE_UINT8"))
    with pytest.raises(RepositoryError, match=r"pair_present is tensor\(bool\), config.pbtxt says TYPE_UINT8"):
        check_repository(copy)


def newer_opset(repository: Path) -> None:
    path = repository / "categorizer" / "1" / "model.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 23
    onnx.save(model, path)


def plan_for_another_machine(repository: Path) -> None:
    folder = repository / "categorizer" / "1"
    (folder / "model.onnx").unlink()
    (folder / "model.plan").write_bytes(b"plan")
    PlanRecord(TENSORRT_RTX, "1.7", "8.9", False, "fp16", (1, 8, 32), False).save(folder / "model.plan")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt ONNX": (
        lambda repository: (repository / "categorizer" / "1" / "model.onnx").write_bytes(b"\x00garbage"),
        "categorizer/1/model.onnx",
    ),
    "wrong opset": (newer_opset, "categorizer/1/model.onnx has opset 23"),
    "no model": (
        lambda repository: (repository / "prepare_product" / "1" / "model.py").unlink(),
        "prepare_product/1 holds no model",
    ),
    "no version": (
        lambda repository: shutil.rmtree(repository / "prepare_product" / "1"),
        "categorize: wants version 1 of its step prepare_product, which is not there",
    ),
    "no step": (lambda repository: shutil.rmtree(repository / "prepare_product"), "step prepare_product is no model"),
    "other version": (
        lambda repository: (repository / "categorizer" / "1").rename(repository / "categorizer" / "2"),
        "categorize: wants version 1 of its step categorizer, which is not there",
    ),
    "no labels": (lambda repository: (repository / "categorize" / "labels.txt").unlink(), "labels.txt is missing"),
    "no readiness": (
        lambda repository: (repository / "categorize" / "readiness.json").write_text(json.dumps([{"image": ""}])),
        "readiness.json must hold a list of requests with values for image, title",
    ),
    "other plan": (plan_for_another_machine, "was built by tensorrt-rtx 1.7 for compute capability 8.9"),
    "unreadable": (
        lambda repository: (repository / "prepare_product" / "config.pbtxt").write_text("max_batch_size: many"),
        "prepare_product/config.pbtxt",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_named(repository: Path, damage: str) -> None:
    make, message = DAMAGES[damage]
    make(repository)
    with pytest.raises(RepositoryError, match=message):
        check_repository(repository)


def test_a_server_refuses_the_plan_before_triton_fails_on_it(repository: Path) -> None:
    plan_for_another_machine(repository)
    result = CliRunner().invoke(shelfwise.app, ["serve", "--repository", str(repository)])
    assert result.exit_code == 1
    assert "categorizer: model.plan was built by tensorrt-rtx 1.7" in result.output
