"""The loop against a plain one written here: what is trained, on what, in which precision, and what is refused."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from training.contrastive import contrastive_loss
from training.sampling import BatchRequest, EpochSampler
from training.settings import TrainConfig
from training.train import (
    Batch,
    Losses,
    Task,
    WeightedSum,
    batch_loader,
    fit,
    learning_rate_factor,
    make_accelerator,
    parameter_groups,
)

PROJECT = Path(__file__).resolve().parents[2]
ROWS = 48


class Pairs(Dataset[Batch]):
    """Rows of two sides, [B, 6] and [B, 5] each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (torch.randn(ROWS, width, generator=generator) for width in (6, 5))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, request: BatchRequest) -> Batch:
        rows = torch.from_numpy(request.rows)
        return {"left": self.left[rows], "right": self.right[rows]}


class Sides(nn.Module):
    """A small tower a side and the scale between them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 8))
        self.right = nn.Linear(5, 8)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.left(left), dim=1), F.normalize(self.right(right), dim=1), self.logit_scale.exp()


class SidesTask(Task[Sides]):
    """Contrast between the sides, and a second loss with a weight of its own."""

    name = "sides"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Sides()
        self.dataset = Pairs()
        self.combiner = WeightedSum({"length": weight})
        self.seen: list[torch.dtype] = []

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        left, right, scale = model(batch["left"], batch["right"])
        return {"left": left, "right": right, "scale": scale}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        self.seen += [tensor.dtype for tensor in outputs.values()]
        own = outputs["left"] @ outputs["left"].T
        self.seen.append(own.dtype)
        contrast = contrastive_loss(outputs["left"], outputs["right"], outputs["scale"])
        return {"contrast": contrast, "length": outputs["left"][:, 0].square().mean()}

    def evaluate(self) -> dict[str, float]:
        assert not self.model.training, "dropout has no place in a figure"
        assert not torch.is_grad_enabled()
        return {"scale": float(self.model.logit_scale.detach())}


@pytest.fixture
def accelerator() -> Accelerator:
    return accelerator_of("no")


def accelerator_of(precision: str) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision=precision)


CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=0.02, weight_decay=0.3, warmup=0.25, clip_norm=0.05)


def plainly_trained(config: TrainConfig, batch_size: int, seed: int, weight: float) -> Sides:
    """The same training written out: the reference for everything that the loop does to weights."""
    task = SidesTask()
    model = task.model
    decayed = [p for name, p in model.named_parameters() if name in ("left.0.weight", "left.2.weight", "right.weight")]
    others = [p for name, p in model.named_parameters() if "bias" in name or name in ("left.1.weight", "logit_scale")]
    assert len(decayed) + len(others) == len(list(model.parameters()))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=1.0
    )
    steps = ROWS // batch_size * config.epochs
    rising = int(0.25 * steps)
    step = 0
    for epoch in range(config.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(ROWS)
        for start in range(0, ROWS, batch_size):
            rows = torch.from_numpy(order[start : start + batch_size])
            left, right, scale = model(task.dataset.left[rows], task.dataset.right[rows])
            logits = scale * left @ right.T
            own = torch.arange(batch_size)
            contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            (contrast + weight * left[:, 0].square().mean()).backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, config.clip_norm / (float(norm) + 1e-6)))
            share = (
                (step + 1) / rising if step < rising else (1 + np.cos(np.pi * (step - rising) / (steps - rising))) / 2
            )
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * share
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return model


def assert_equal_weights(found: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=tolerance, rtol=tolerance, msg=name)


def test_weights_end_where_those_of_a_plain_loop_do(accelerator: Accelerator, tmp_path: Path) -> None:
    task = SidesTask()
    fit(task, CONFIG, tmp_path, accelerator, seed=3)
    assert_equal_weights(task.model, plainly_trained(CONFIG, 8, seed=3, weight=0.25))


def test_a_batch_in_chunks_gives_the_gradients_of_the_whole(accelerator: Accelerator, tmp_path: Path) -> None:
    whole, chunked = SidesTask(), SidesTask()
    fit(whole, CONFIG.model_copy(update={"batch_size": 16}), tmp_path / "a", accelerator)
    fit(chunked, CONFIG.model_copy(update={"batch_size": 16, "chunk": 5}), tmp_path / "b", accelerator)
    assert_equal_weights(chunked.model, whole.model)


def test_batches_accumulated_are_the_mean_of_their_losses(accelerator: Accelerator, tmp_path: Path) -> None:
    """A step of two batches moves weights as the mean of the two batches' losses does.

    The limit of the norm lies between that of the mean and that of the sum: AdamW itself does not tell them apart.
    """
    task, reference = SidesTask(), SidesTask()
    config = CONFIG.model_copy(
        update={"epochs": 4, "batch_size": 12, "accumulate": 2, "warmup": 1.0, "learning_rate": 0.005, "clip_norm": 2.3}
    )
    fit(task, config, tmp_path, accelerator, seed=5)
    optimizer = torch.optim.AdamW(parameter_groups(reference.model, config))
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, 8, config))
    norms = []
    for epoch in range(4):
        order = torch.from_numpy(np.random.default_rng((5, epoch)).permutation(ROWS))
        for number, rows in enumerate(order.split(12)):
            sides = {"left": reference.dataset.left[rows], "right": reference.dataset.right[rows]}
            losses = reference.losses(reference.forward(reference.model, sides), {})
            ((losses["contrast"] + 0.25 * losses["length"]) / 2).backward()
            if number % 2:
                norms.append(float(nn.utils.clip_grad_norm_(reference.model.parameters(), config.clip_norm)))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    assert max(norms) < config.clip_norm < 2 * min(norms)
    assert_equal_weights(task.model, reference.model)


class Watched(SidesTask):
    """Notes what asks for gradients while it is trained, and how far it was at the beginning of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[float] = []

    def start_epoch(self, progress: float) -> None:
        self.progress.append(progress)

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        self.trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return super().losses(outputs, batch)


def test_rates_are_factors_by_name_and_zero_freezes(accelerator: Accelerator, tmp_path: Path) -> None:
    task = Watched()
    before = copy.deepcopy(task.model)
    config = CONFIG.model_copy(update={"rates": {"left": 0.0, "left.2": 0.1}})
    groups = {id(p): group for group in parameter_groups(task.model, config) for p in group["params"]}
    rate = {name: groups[id(p)]["lr"] for name, p in task.model.named_parameters()}
    assert rate["left.2.weight"] == pytest.approx(0.002)
    assert rate["right.weight"] == pytest.approx(0.02)
    fit(task, config, tmp_path, accelerator)
    assert torch.equal(task.model.left[0].weight, before.left[0].weight)
    assert task.progress == [0.0, 0.5, 1.0]
    assert task.trained == {"left.2.weight", "left.2.bias", "right.weight", "right.bias", "logit_scale"}
    assert not torch.equal(task.model.left[2].weight, before.left[2].weight)
    assert all(parameter.requires_grad for parameter in task.model.parameters()), "frozen for one stage, not for good"
    with pytest.raises(ValueError, match="no parameter's name begins with 'middle'"):
        parameter_groups(task.model, CONFIG.model_copy(update={"rates": {"middle": 0.1}}))


def test_losses_see_float32_and_compute_in_it_under_bfloat16(tmp_path: Path) -> None:
    task = SidesTask()
    fit(task, CONFIG.model_copy(update={"epochs": 1}), tmp_path, accelerator_of("bf16"))
    assert set(task.seen) == {torch.float32}


def test_the_model_left_behind_computes_in_float32(tmp_path: Path) -> None:
    task = SidesTask()
    fit(task, CONFIG.model_copy(update={"epochs": 1}), tmp_path, accelerator_of("bf16"))
    plain = Sides()
    plain.load_state_dict(task.model.state_dict())
    found, expected = (model(task.dataset.left, task.dataset.right) for model in (task.model, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_precision_is_what_accelerate_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for told, used in (("no", "no"), ("bf16", "bf16"), (None, "bf16")):
        AcceleratorState._reset_state(reset_partial_state=True)
        if told is None:
            monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        else:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        assert make_accelerator().mixed_precision == used
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert make_accelerator().mixed_precision == "no", "emulated bfloat16 is no bfloat16"


class Spoilt(Pairs):
    """A row that is not a number; found by whichever batch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.left[17] = torch.nan


def test_weights_that_are_no_numbers_are_refused_before_a_checkpoint_holds_them(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    task = SidesTask()
    task.dataset = Spoilt()
    config = CONFIG.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(FloatingPointError, match="sides: gradients were not finite"):
        fit(task, config, tmp_path, accelerator)
    written = tmp_path / "sides.safetensors"
    assert not written.exists() or all(tensor.isfinite().all() for tensor in load_file(written).values())


def test_a_checkpoint_of_something_else_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    fit(SidesTask(), CONFIG, tmp_path, accelerator, depends="these labels")
    fit(SidesTask(), CONFIG.model_copy(update={"workers": 1}), tmp_path, accelerator, depends="these labels")
    for changed in ({"depends": "other labels"}, {"depends": "these labels", "seed": 1}):
        with pytest.raises(ValueError, match="belongs to a run with other settings"):
            fit(SidesTask(), CONFIG, tmp_path, accelerator, **changed)  # type: ignore[arg-type]


class CountingCombiner(nn.Module):
    """Weights losses by how often it was asked: state that a checkpoint must bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, losses: Losses) -> Losses:
        self.asked += 1
        return dict.fromkeys(losses, 1 / (1 + self.asked))


class Interrupted(Pairs):
    """Ends the process's training after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left_to_give = batches

    def __getitem__(self, request: BatchRequest) -> Batch:
        self.left_to_give -= 1
        if self.left_to_give < 0:
            raise KeyboardInterrupt
        return super().__getitem__(request)


def test_a_combiners_state_is_part_of_the_checkpoint(accelerator: Accelerator, tmp_path: Path) -> None:
    def task(batches: int) -> SidesTask:
        made = SidesTask()
        made.combiner, made.dataset = CountingCombiner(), Interrupted(batches)
        return made

    whole = task(1000)
    fit(whole, CONFIG, tmp_path / "whole", accelerator)
    config = CONFIG.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(KeyboardInterrupt):
        fit(task(9), config, tmp_path / "broken", accelerator)
    resumed = task(1000)
    fit(resumed, config, tmp_path / "broken", accelerator)
    assert float(resumed.combiner.asked) == float(whole.combiner.asked) == 18
    assert_equal_weights(resumed.model, whole.model)


def test_batches_that_lie_on_a_device_are_not_pinned() -> None:
    sampler = EpochSampler(ROWS, 8, 0)
    elsewhere = Pairs()
    elsewhere.device = torch.device("meta")  # type: ignore[attr-defined]
    gpu = torch.device("cuda")
    assert batch_loader(Pairs(), sampler, 2, gpu).pin_memory
    loader = batch_loader(elsewhere, sampler, 2, gpu)
    assert not loader.pin_memory, "only memory of the host can be pinned"
    assert loader.num_workers == 0, "tensors of a device do not cross processes"
    assert not batch_loader(Pairs(), sampler, 0, torch.device("cpu")).pin_memory


@pytest.mark.parametrize(("warmup", "steps_rising"), [(0.25, 4), (6.0, 6), (0.0, 1)])
def test_warm_up_is_a_share_or_a_number_of_steps(warmup: float, steps_rising: int) -> None:
    factors = [learning_rate_factor(step, 16, TrainConfig(epochs=1, warmup=warmup)) for step in range(16)]
    assert factors[:steps_rising] == pytest.approx(np.arange(1, steps_rising + 1) / steps_rising)
    assert factors[steps_rising - 1] == 1.0
    assert factors[-1] < factors[steps_rising] or steps_rising == 1


TWO_PROCESSES = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.training.test_loop import SidesTask
from training.distributed import gather_parts, own_rows
from training.contrastive import TowersTask
import numpy as np

class Towers(TowersTask):
    def evaluate(self):
        return {}

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
task = SidesTask()
model = DistributedDataParallel(task.model)
rows = torch.arange(16).split(8)[rank]
left, right, scale = model(task.dataset.left[rows], task.dataset.right[rows])
Towers().losses({"image_embeds": left, "text_embeds": right, "scale": scale}, {})["contrastive"].backward()
mine = own_rows(np.arange(11))
whole = gather_parts(torch.from_numpy(mine) * 10.0, 11)
if rank == 0:
    torch.save([p.grad for p in task.model.parameters()] + [whole], file + ".out")
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "meet")],
            cwd=PROJECT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    *gradients, gathered = torch.load(tmp_path / "meet.out", weights_only=True)
    alone = SidesTask()
    left, right, scale = alone.model(alone.dataset.left[:16], alone.dataset.right[:16])
    contrastive_loss(left, right, scale).backward()
    for found, parameter in zip(gradients, alone.model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)
    assert gathered.tolist() == [10.0 * row for row in range(11)]


def test_contrast_is_asked_from_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (F.normalize(torch.randn(5, 4, generator=generator), dim=1).double() for _ in "lr")
    cosines = 7 * left @ right.T

    def one_side(scores: Tensor) -> float:
        return float(np.mean([float(row.logsumexp(0) - row[number]) for number, row in enumerate(scores)]))

    expected = (one_side(cosines) + one_side(cosines.T)) / 2
    assert one_side(cosines) != pytest.approx(one_side(cosines.T), rel=1e-3), "the sides differ, or nothing is shown"
    found = contrastive_loss(left.float(), right.float(), torch.tensor(7.0))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    same: Any = torch.eye(5, dtype=torch.bool)
    assert float(contrastive_loss(left.float(), right.float(), torch.tensor(7.0), same)) == pytest.approx(expected)
