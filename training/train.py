"""One training loop for every system; what differs between them is the task object.

A task brings a model, a data set that answers `BatchRequest`s, and a loss.  The loop brings processes (accelerate),
mixed precision, the learning-rate schedule, clipping, checkpoints, progress and TensorBoard scalars.  Killed at any
point and started again with the same settings it goes on where the last checkpoint was, and ends with the same numbers
as a run that was never killed: order, augmentation and dropout are functions of seed, step and process.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import Position, load_checkpoint, save_checkpoint
from .sampling import EpochSampler

Batch = dict[str, Tensor]


class TrainConfig(BaseModel):
    """Settings of one training."""

    model_config = ConfigDict(extra="forbid")

    epochs: NonNegativeInt = Field(description="passes over the training examples")
    batch_size: PositiveInt = Field(128, description="examples per step and process")
    learning_rate: PositiveFloat = Field(1e-3, description="peak rate of AdamW")
    weight_decay: NonNegativeFloat = Field(0.05, description="AdamW's decay; biases and norms are exempt")
    warmup: NonNegativeFloat = Field(0.1, lt=1.0, description="share of the steps in which the rate rises")
    clip_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    workers: NonNegativeInt = Field(0, description="processes that load batches; 0 loads in the training process")
    seed: NonNegativeInt = 0
    checkpoint_minutes: PositiveFloat = Field(5.0, description="a checkpoint is written this often, and every epoch")


class Task(Protocol):
    """What the loop needs to know about a system."""

    @property
    def name(self) -> str:
        """Of the stage: names its checkpoint and its plots."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def dataset(self) -> Dataset[Batch]:
        """Answers a `BatchRequest` with a batch; has a length."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and scalars worth plotting; `model` may be wrapped for several processes."""

    def evaluate(self) -> dict[str, float]:
        """Validation metrics of `self.model`, called in evaluation mode after every epoch."""

    def start_epoch(self, epoch: int) -> None:
        """Called before every epoch; for targets and rates that change over time."""


def make_accelerator() -> Accelerator:
    """The processes and the precision to train with: bfloat16 where the hardware multiplies it, else float32.

    On a CPU that is Intel AMX or AVX-512 BF16; without them bfloat16 is emulated and slower than float32.
    """
    if torch.cuda.is_available():
        fast_bfloat16 = torch.cuda.is_bf16_supported()
    else:
        fast_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if fast_bfloat16 else "no",
    )


def fit(task: Task, config: TrainConfig, folder: Path, accelerator: Accelerator) -> dict[str, float]:
    """Trains `task.model` in place.

    Args:
        task: the system.
        config: the settings.
        folder: holds the checkpoint `NAME.safetensors` and TensorBoard's files.
        accelerator: from `make_accelerator`; one per program.

    Returns:
        The validation metrics after the last epoch.

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: `folder` holds a checkpoint of the same task with other settings.
    """
    main = accelerator.is_main_process
    optimizer = torch.optim.AdamW(
        _parameter_groups(task.model, config.weight_decay), lr=config.learning_rate, fused=True
    )
    sampler = EpochSampler(
        len(task.dataset),  # type: ignore[arg-type]
        config.batch_size,
        config.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        task.dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
    )
    steps = len(sampler) * config.epochs
    task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what convolutions are fastest in
    task.model.to(accelerator.device)

    checkpoint = folder / f"{task.name}.safetensors"
    fingerprint = _fingerprint(task, config, accelerator.num_processes)
    position = load_checkpoint(checkpoint, task.model, optimizer, fingerprint) or Position(0, 0, 0, fingerprint)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    writer = SummaryWriter(folder / "tensorboard" / task.name, purge_step=position.step) if main else None

    step, metrics = position.step, {}
    saved = time.monotonic()
    with _progress(enabled=main and steps > 0) as progress:
        bar = progress.add_task(task.name, total=steps, completed=step, note="")
        for epoch in range(position.epoch, config.epochs):
            first_batch = position.batch if epoch == position.epoch else 0
            sampler.start_at(epoch, first_batch)
            task.start_epoch(epoch)
            model.train()
            for done, batch in enumerate(loader, start=first_batch + 1):
                batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                learning_rate = config.learning_rate * learning_rate_factor(step, steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                torch.manual_seed(_step_seed(config.seed, step, accelerator.process_index))  # dropout
                with accelerator.autocast():
                    loss, scalars = task.loss(model, batch)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step % 20 == 0 or step == steps:
                    value = loss.item()
                    if not math.isfinite(value):
                        raise FloatingPointError(
                            f"{task.name}: loss is {value} at step {step}; lower the learning rate"
                        )
                    if writer is not None:
                        writer.add_scalar("train/loss", value, step)
                        writer.add_scalar("train/learning_rate", learning_rate, step)
                        for name, scalar in scalars.items():
                            writer.add_scalar(f"train/{name}", float(scalar), step)
                    progress.update(bar, completed=step, note=f"loss {value:.3f}")
                if main and done < len(sampler) and time.monotonic() - saved > 60 * config.checkpoint_minutes:
                    save_checkpoint(checkpoint, task.model, optimizer, Position(epoch, done, step, fingerprint))
                    saved = time.monotonic()
            if main:
                task.model.eval()
                metrics = task.evaluate()
                save_checkpoint(checkpoint, task.model, optimizer, Position(epoch + 1, 0, step, fingerprint))
                saved = time.monotonic()
                if writer is not None:
                    for name, value in metrics.items():
                        writer.add_scalar(f"val/{name}", value, step)
                progress.console.print(
                    f"{task.name} epoch {epoch + 1}/{config.epochs}: {_line(metrics)}", soft_wrap=True
                )
                progress.console.file.flush()  # a log file should be as far along as the training
            accelerator.wait_for_everyone()
    if writer is not None:
        writer.close()
    task.model.eval()
    if main and not metrics:  # nothing left to train: the checkpoint was complete
        metrics = task.evaluate()
    return broadcast_object_list([metrics])[0]


def learning_rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, 2017); a factor of the peak rate."""
    warmup_steps = max(1, int(config.warmup * steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and convolutions decay; biases, norms and single vectors do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _fingerprint(task: Task, config: TrainConfig, processes: int) -> str:
    """Names what a checkpoint must share with a run to continue it."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in task.model.state_dict().items()]
    settings = config.model_dump(exclude={"workers", "checkpoint_minutes"})
    text = repr((task.name, len(task.dataset), settings, processes, shapes))  # type: ignore[arg-type]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _progress(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not enabled,
    )
