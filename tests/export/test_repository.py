"""Exports of a real bundle: what a release holds, what is refused, what is kept, two at once, a full disk."""

from __future__ import annotations

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

import shelfwise
from export.bundles import export_bundle
from export.categorize import real_inputs
from export.parity import ParityError
from repository.check import check_repository
from repository.configs import model_configs, read_config, step_names
from repository.publish import LOCK_FILE, rollback
from repository.release import CURRENT, Release, current
from training.categorize import CATEGORIZER


def test_a_release_holds_what_its_models_read(categorize_bundle: Path, categorize_repository: Path) -> None:
    every = (path.relative_to(categorize_repository) for path in categorize_repository.rglob("*"))
    files = {str(path) for path in every if "__pycache__" not in path.parts}  # left by a server that ran on it before
    assert {
        "prepare_product/1/images/__init__.py",
        "prepare_product/1/model.py",
        "prepare_product/1/preprocessing.json",
        "prepare_product/1/tokenizer.json",
        "categorizer/1/model.onnx",
        "categorizer/1/report.json",
        "categorize/labels.txt",
        "categorize/readiness.json",
        "release.json",
    } <= files
    release = Release.load(categorize_repository)
    release.verify()
    folders = {path for path in files if (categorize_repository / path).is_dir()}
    assert set(release.files) == files - folders - {"release.json"}
    about = release.ensembles["categorize"]
    assert (about["target"], about["precision"], about["bundle"]) == ("cpu", "fp32", str(categorize_bundle))
    report = json.loads((categorize_repository / "categorizer" / "1" / "report.json").read_text())
    compared = {output["output"] for output in report["graphs"]["category_head"]["parity"]}
    assert compared == {"category_id", "probability", "neighbour_kl", "class_probability", "sure_from"}


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


def test_an_export_that_misses_parity_keeps_the_old_release(
    categorize_bundle: Path, categorize_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = repository_of(categorize_repository, tmp_path)
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
    assert {path.name for path in repository.iterdir()} == {"1", CURRENT, LOCK_FILE}


def repository_of(release: Path, folder: Path) -> Path:
    """A copy of the repository that a release lies in."""
    return Path(shutil.copytree(release.parent, folder / "repository", symlinks=True))


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


def test_every_target_of_a_bundle_is_a_release_of_its_own_and_rolled_back(
    categorize_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13")
    repository = tmp_path / "repository"
    command = ["export", str(categorize_bundle), "--repository", str(repository)]
    for options in (["--precision", "int8"], ["--target", "tensorrt", "--gpu", "8.9", "--gpu", "12.0"]):
        result = CliRunner().invoke(shelfwise.app, [*command, *options])
        assert result.exit_code == 0, result.output
    first, second = repository / "1", repository / "2"
    config = read_config("product_encoder", second)
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "12.0": "model.sm120.plan"}
    assert (second / "product_encoder" / "2" / "model.sm89.plan").is_file()
    assert (second / "category_head" / "2" / "model.onnx").is_file(), "it decides, in float32, on the CPU"
    report = json.loads((second / "product_encoder" / "2" / "report.json").read_text())
    assert report["precision"] == "fp16"
    assert set(report["plans"]) == {"model.sm89.plan", "model.sm120.plan"}
    steps = [
        (step.model_name, step.model_version) for step in read_config("categorize", second).ensemble_scheduling.step
    ]
    assert steps == [("prepare_product", 1), ("product_encoder", 2), ("category_head", 2)]
    assert {config.name for config in model_configs(second)} == {"categorize", *(name for name, _ in steps)}
    assert rollback(repository).number == 1
    assert set(check_repository(repository)) == {"categorize", "prepare_product", "categorizer"}
    about = Release.load(first).ensembles["categorize"]
    assert (about["target"], about["precision"]) == ("cpu", "int8")


def test_two_exports_at_once_both_end_in_a_whole_release(
    categorize_bundle: Path, colour_bundle: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "shelfwise.py", "export", "--repository", str(tmp_path)]
    root = Path(shelfwise.__file__).parent
    exports = [subprocess.Popen([*command, str(b)], cwd=root) for b in (categorize_bundle, colour_bundle)]
    assert [export.wait() for export in exports] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", CURRENT, LOCK_FILE}
    release = Release.load(current(tmp_path))
    assert set(release.ensembles) == {"categorize", "match_colours"}
    assert {*step_names(read_config("categorize", release.folder)), "match_colours"} <= set(check_repository(tmp_path))


def test_a_full_disk_keeps_the_old_release(
    categorize_bundle: Path, categorize_repository: Path, tmp_path: Path
) -> None:
    repository = repository_of(categorize_repository, tmp_path)
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
    Release.load(current(repository)).verify()
