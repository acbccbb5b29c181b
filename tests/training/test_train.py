"""The loop: a killed run ends where an unbroken one does, processes share the work, settings are checked."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.categorize import CATEGORIZER, CategorizeSettings
from training.examples import augment, drop_tokens
from training.sampling import BatchRequest, EpochSampler
from training.settings import TrainConfig
from training.train import learning_rate_factor

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = """{
  "image_tower": "scratch", "image_height": 64, "image_width": 48, "embed_dim": 32, "vocab_size": 600,
  "contrastive": {"epochs": 1, "batch_size": 32, "checkpoint_minutes": 0.001},
  "head": {"epochs": 1, "batch_size": 64},
  "finetune": {"epochs": 2, "batch_size": 16, "checkpoint_minutes": 0.001}
}"""


def train_command(feed: Path, run: Path, *launcher: str) -> list[str]:
    settings = run.parent / "settings.json"
    settings.write_text(SETTINGS)
    command = launcher or (sys.executable,)
    script = str(PROJECT / "shelfwise.py")
    return [*command, script, "train", "categorize", str(feed), "--run", str(run), "--settings", str(settings)]


@pytest.fixture(scope="module")
def unbroken_run(sample_feed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(train_command(sample_feed, run), cwd=PROJECT, check=True, capture_output=True, timeout=300)
    return run


def test_a_run_killed_twice_ends_with_the_numbers_of_an_unbroken_one(
    sample_feed: Path, unbroken_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stage in ("contrastive", "finetune"):
        # In the middle of a stage: checkpoints are written far more often than epochs end here.
        process = subprocess.Popen(
            train_command(sample_feed, run), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while not (run / f"{stage}.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (run / f"{stage}.safetensors").exists()
        assert not (run / "bundle").exists(), "killed too late to show anything"
    subprocess.run(train_command(sample_feed, run), cwd=PROJECT, check=True, capture_output=True, timeout=300)
    resumed = load_file(run / "bundle" / "model.safetensors")
    for name, expected in load_file(unbroken_run / "bundle" / "model.safetensors").items():
        torch.testing.assert_close(resumed[name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_arrays_of_a_feed_are_known_again_by_another_process(sample_feed: Path) -> None:
    program = "import sys; from catalogue.feed import open_feed; print(open_feed(sys.argv[1]).fingerprint())"
    command = [sys.executable, "-c", program, str(sample_feed)]
    printed = {
        subprocess.run(
            command, cwd=PROJECT, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(printed) == 1


def test_two_processes_train_under_accelerate_launch(sample_feed: Path, tmp_path: Path) -> None:
    launcher = (
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        train_command(sample_feed, tmp_path / "run", *launcher),
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("written") == 1, "one process writes"
    bundle = CATEGORIZER.load(tmp_path / "run" / "bundle")
    assert set(bundle.config.metrics) == {"served", "frozen", "finetuned"}


@pytest.mark.parametrize("changed", [("--seed", "7"), ("--kl-weight", "0.5")])
def test_another_configuration_does_not_continue_a_checkpoint(
    sample_feed: Path, unbroken_run: Path, changed: tuple[str, str]
) -> None:
    command = [*train_command(sample_feed, unbroken_run), *changed]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 1
    assert "belongs to a run with other settings" in finished.stderr


def test_the_slices_of_all_processes_make_up_each_batch() -> None:
    alone = EpochSampler(103, 10, seed=3)
    shared = [EpochSampler(103, 5, seed=3, process=process, processes=2) for process in range(2)]
    for whole, *parts in zip(alone, *shared, strict=True):
        np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in parts]))
    seen = np.concatenate([request.rows for request in alone])
    assert len(set(seen)) == len(seen) == 100


def test_an_epoch_can_begin_in_its_middle() -> None:
    whole, rest = EpochSampler(50, 5, seed=1), EpochSampler(50, 5, seed=1)
    whole.start_at(2)
    rest.start_at(2, first_batch=7)
    requests: list[BatchRequest] = list(whole)[7:]
    for expected, found in zip(requests, rest, strict=True):
        np.testing.assert_array_equal(expected.rows, found.rows)
        assert expected.seed == found.seed


def test_too_few_examples_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="31 examples cannot fill one batch of 32"):
        EpochSampler(31, 32, seed=0)


def test_augmentation_moves_and_mirrors_but_keeps_the_picture() -> None:
    pixels = np.zeros((64, 20, 16, 3), np.uint8)
    pixels[:, 8:12, 3:7] = 200
    moved = augment(pixels, 3, np.random.default_rng(0))
    assert moved.shape == pixels.shape
    assert ((moved == 200).sum((1, 2, 3)) == 4 * 4 * 3).all(), "the patch stays whole"
    assert len({tuple(np.argwhere(image == 200)[0]) for image in moved}) > 20, "and goes to many places"
    np.testing.assert_array_equal(moved, augment(pixels, 3, np.random.default_rng(0)))


def test_dropping_tokens_leaves_the_first_and_most_others() -> None:
    mask = np.ones((400, 12), np.int64)
    mask[:, 9:] = 0
    dropped = drop_tokens(mask, 0.25, np.random.default_rng(0))
    assert dropped[:, 0].all()
    assert not dropped[:, 9:].any(), "padding stays padding"
    assert dropped[:, 1:9].mean() == pytest.approx(0.75, abs=0.03)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = TrainConfig(epochs=1, warmup=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert max(factors) == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 0.001


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"labels": "nonsense"}, "representation"),
        ({"gamma": -2.0}, "gamma"),
        ({"finetune.epochs": "-1"}, "finetune.epochs"),
        ({"no_such": "1"}, "no_such"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategorizeSettings().overridden(given)
