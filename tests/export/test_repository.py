"""Versions of a repository: whole or not at all, the previous one kept, rolled back; and exports of a real bundle."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import export.repository
import shelfwise
from export.bundles import export_bundle
from export.categorize import real_inputs
from export.check import check_repository
from export.parity import ParityError
from export.repository import RepositoryError, published_versions, read_config, rollback, stage_version
from export.served import model_configs
from training.categorize import CATEGORIZER


def publish(repository: Path, text: str) -> int:
    with stage_version(repository, "categorize") as staged:
        for model in staged.models:
            (staged.path(model) / "built").write_text(text)
        (staged.path("categorize") / "labels.txt").write_text(text)
        staged.publish({"text": text})
    return staged.version


def test_versions_count_up_and_two_are_kept(tmp_path: Path) -> None:
    assert [publish(tmp_path, text) for text in "abc"] == [1, 2, 3]
    assert published_versions(tmp_path, "categorize") == [2, 3]
    assert sorted(path.name for path in (tmp_path / "prepare_product").iterdir()) == ["2", "3", "config.pbtxt"]


def test_rollback_serves_what_was_there_before(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    publish(tmp_path, "b")
    assert (tmp_path / "categorize" / "labels.txt").read_text() == "b"
    assert rollback(tmp_path, "categorize") == 1
    assert (tmp_path / "categorizer" / "1" / "built").read_text() == "a"
    assert (tmp_path / "categorize" / "labels.txt").read_text() == "a", "Triton reads the labels beside config.pbtxt"
    assert not (tmp_path / "categorizer" / "2").exists()
    with pytest.raises(RepositoryError, match="none to go back to"):
        rollback(tmp_path, "categorize")


def test_an_export_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish(repository, "a")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail_half_way() -> None:
        with stage_version(repository, "categorize") as staged:
            (staged.path("prepare_product") / "built").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_publication_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    publish(repository, "a")
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    place_files = export.repository._place_files

    def full_disk(repository: Path, model: str, version: int) -> None:
        if (model, version) == ("categorizer", 2):  # its version was moved in already, and the step before it
            raise OSError(errno.ENOSPC, "No space left on device")
        place_files(repository, model, version)

    monkeypatch.setattr(export.repository, "_place_files", full_disk)
    with pytest.raises(OSError, match="No space left"):
        publish(repository, "b")
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before


def test_an_interrupted_publication_is_overwritten_by_the_next(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    leftover = tmp_path / "prepare_product" / "2"
    leftover.mkdir()
    (leftover / "built").write_text("half")
    assert published_versions(tmp_path, "categorize") == [1], "a version counts when the ensemble's is there"
    assert publish(tmp_path, "b") == 2
    assert (leftover / "built").read_text() == "b"


def test_an_exported_repository_holds_what_its_models_read(categorize_repository: Path) -> None:
    files = {str(path.relative_to(categorize_repository)) for path in categorize_repository.rglob("*")}
    assert {
        "prepare_product/1/images.py",
        "prepare_product/1/model.py",
        "prepare_product/1/preprocessing.json",
        "prepare_product/1/tokenizer.json",
        "categorizer/1/model.onnx",
        "categorizer/1/report.json",
        "categorize/labels.txt",
        "categorize/1/release.json",
        "categorize/readiness.json",
    } <= files
    report = json.loads((categorize_repository / "categorizer" / "1" / "report.json").read_text())
    compared = {output["output"] for output in report["graphs"]["category_head"]["parity"]}
    assert compared == {"category_id", "probability", "neighbour_kl", "class_probability"}


def test_neighbour_kl_is_the_divergence_from_the_soft_label(
    categorize_bundle: Path, categorize_repository: Path
) -> None:
    bundle = CATEGORIZER.load(categorize_bundle)
    inputs = real_inputs(bundle, bundle.samples)
    with torch.no_grad():
        logits = bundle.model(*(inputs[name] for name in inputs))
    q = torch.softmax(logits.double(), dim=1).numpy()
    soft = np.zeros((len(bundle.extras["labels.txt"]), len(bundle.extras["labels.txt"])))
    np.put_along_axis(
        soft,
        bundle.extras["neighbours.safetensors"].ids.long().numpy(),
        bundle.extras["neighbours.safetensors"].weights.double().numpy(),
        axis=1,
    )
    p = soft[q.argmax(1)]
    expected = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(q)), 0).sum(1)

    session = onnxruntime.InferenceSession(categorize_repository / "categorizer" / "1" / "model.onnx")
    outputs = [output.name for output in session.get_outputs()]
    found = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
    arrays = dict(zip(outputs, found, strict=True))
    np.testing.assert_allclose(arrays["neighbour_kl"][:, 0], expected, atol=1e-4)
    np.testing.assert_array_equal(arrays["category_id"][:, 0], q.argmax(1))
    assert np.all(np.diff(arrays["probability"], axis=1) <= 0), "most probable first"


def test_an_export_that_misses_parity_keeps_the_old_version(
    categorize_bundle: Path, categorize_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(categorize_repository, repository)
    # The exporter is made to write a graph with other weights, as an optimiser gone wrong would.
    import export.system as exporting

    def drifted(graph: exporting.GraphSpec, path: Path) -> None:
        state = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
        with torch.no_grad():
            next(parameter for parameter in graph.module.parameters() if parameter.ndim >= 2).mul_(1.5)
        original(graph, path)
        graph.module.load_state_dict(state)

    original = exporting.export_onnx
    monkeypatch.setattr(exporting, "export_onnx", drifted)
    with pytest.raises(ParityError, match=r"product_encoder: .*image_embeds"):
        export_bundle(categorize_bundle, repository)
    assert published_versions(repository, "categorize") == [1]
    assert not list(tmp_path.glob(".*staging"))


def corrupt(bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    return copy


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("labels.txt", None, "labels.txt is missing"),
        ("labels.txt", "A > B\n", "labels.txt has 1 labels"),
        ("config.json", "{", "config.json is no JSON"),
        ("config.json", '{"format_version": 99}', "format_version is 99"),
        ("config.json", '{"format_version": 1, "system": "other"}', "config.json"),
        ("model.safetensors", "garbage", "model.safetensors"),
        ("neighbours.safetensors", "garbage", "neighbours.safetensors"),
        ("samples.parquet", "garbage", "samples.parquet"),
    ],
)
def test_a_corrupt_bundle_is_refused_by_the_command_with_the_files_name(
    categorize_bundle: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    bundle = corrupt(categorize_bundle, tmp_path)
    (bundle / file).unlink()
    if content is not None:
        (bundle / file).write_text(content)
    result = CliRunner().invoke(shelfwise.app, ["export", str(bundle), "--repository", str(tmp_path / "repository")])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "repository").exists(), "nothing is written for a bundle that cannot be used"


def test_weights_of_another_model_are_refused(categorize_bundle: Path, tmp_path: Path) -> None:
    bundle = corrupt(categorize_bundle, tmp_path)
    state = load_file(bundle / "model.safetensors")
    state["head.mlp.4.weight"] = state["head.mlp.4.weight"][:3].clone()
    save_file(state, bundle / "model.safetensors")
    result = CliRunner().invoke(shelfwise.app, ["export", str(bundle), "--repository", str(tmp_path / "r")])
    assert result.exit_code == 1
    assert "head.mlp.4.weight" in result.output


def test_every_target_of_a_bundle_is_published_and_rolled_back_with_its_configuration(
    categorize_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13")
    repository = tmp_path / "repository"
    command = ["export", str(categorize_bundle), "--repository", str(repository)]
    for options in (["--precision", "int8"], ["--target", "tensorrt", "--gpu", "8.9", "--gpu", "12.0"]):
        result = CliRunner().invoke(shelfwise.app, [*command, *options])
        assert result.exit_code == 0, result.output
    config = read_config("product_encoder", repository)
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "12.0": "model.sm120.plan"}
    assert (repository / "product_encoder" / "2" / "model.sm89.plan").is_file()
    assert (repository / "category_head" / "2" / "model.onnx").is_file(), "it decides, in float32, on the CPU"
    report = json.loads((repository / "product_encoder" / "2" / "report.json").read_text())
    assert report["precision"] == "fp16"
    assert set(report["plans"]) == {"model.sm89.plan", "model.sm120.plan"}
    assert [step.model_name for step in read_config("categorize", repository).ensemble_scheduling.step] == [
        "prepare_product",
        "product_encoder",
        "category_head",
    ]
    served = {config.name for config in model_configs(repository)}
    assert served == {"categorize", "prepare_product", "product_encoder", "category_head"}, "not the other version's"
    assert rollback(repository, "categorize") == 1
    assert read_config("categorize", repository) == read_config("categorize")
    assert read_config("categorizer", repository) == read_config("categorizer")
    assert "product_encoder" not in check_repository(repository)
    release = json.loads((repository / "categorize" / "1" / "release.json").read_text())
    assert (release["target"], release["precision"]) == ("cpu", "int8")


def test_a_full_disk_keeps_the_old_version(
    categorize_bundle: Path, categorize_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(categorize_repository, repository)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    # A limit on the size of files fails a write half-way, as a full disk does.
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import shelfwise; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "shelfwise.app(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "export", str(categorize_bundle), "--repository", str(repository)],
        cwd=Path(shelfwise.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert published_versions(repository, "categorize") == [1]
