"""One training loop for every system; what differs between them is the task.

A task brings a model, a data set that answers `BatchRequest`s, and named losses.  The loop brings processes and
precision (accelerate), the learning-rate schedule, clipping, accumulation, gradient caching, checkpoints, progress and
TensorBoard scalars.  Killed at any point and started again with the same settings it goes on where the last checkpoint
was, and ends with the same numbers as a run that was never killed: order, augmentation and dropout are functions of
seed, step and process.  Autocast is on in a task's forward pass and nowhere else: losses, evaluation and the model that
is left behind compute in float32.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import Position, Trained
from .memory import keep_freed_memory
from .sampling import EpochSampler
from .settings import TrainConfig

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)
LOGGED_EVERY = 20


class WeightedSum(nn.Module):
    """The total of several losses under fixed weights; 1 where none is given."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.given = dict(weights or {})

    def forward(self, losses: Losses) -> Losses:
        """The weight of each loss."""
        return {name: loss.new_full((), self.given.get(name, 1.0)) for name, loss in losses.items()}


class Task(ABC, Generic[Model]):
    """What the loop needs to know of one training.

    Attributes:
        name: of the stage: names its checkpoint and its plots.
        model: what is trained.
        dataset: answers a `BatchRequest` with a batch, and has a length. One whose tensors lie on an accelerator says
            so by an attribute `device`.
        combiner: from losses by name to their weights in the total; what state it keeps is part of the checkpoint.
    """

    name: str
    model: Model
    dataset: Dataset[Batch]

    def __init__(self) -> None:
        self.combiner: nn.Module = WeightedSum()

    def start_epoch(self, progress: float) -> None:
        """Called before every epoch, with 0 for the first and 1 for the last: for targets that change over time, and
        for modules that are not to be in training mode, as all are by then."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """What the losses need, by name, under autocast; a row an example, or without a dimension (a temperature).

        `model` is `self.model`, wrapped where there are several processes.
        """

    @abstractmethod
    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """The losses by name, each a scalar; outputs are float32, whatever the forward pass computed in."""

    def scalars(self, outputs: Batch) -> Mapping[str, Tensor]:
        """What else is worth plotting."""
        return {}

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Validation metrics of `self.model`, called in evaluation mode after every epoch, on every process."""


def make_accelerator() -> Accelerator:
    """The processes and the precision to train with; from here on the process keeps the memory that it frees.

    Precision is what accelerate was told (`accelerate launch --mixed_precision`, ACCELERATE_MIXED_PRECISION), else
    bfloat16 where the hardware multiplies it (on a CPU: Intel AMX or AVX-512 BF16), else float32: emulated bfloat16 is
    slower than that.
    """
    keep_freed_memory()
    cuda = torch.cuda.is_available()
    precision = None
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        if cuda:
            fast_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast_bfloat16 else "no"
    return Accelerator(cpu=not cuda, mixed_precision=precision)


def fit(
    task: Task[Any], config: TrainConfig, folder: Path, accelerator: Accelerator, *, seed: int = 0, depends: str = ""
) -> dict[str, float]:
    """Trains `task.model` in place.

    Args:
        task: what is trained on what.
        config: the settings.
        folder: holds the checkpoint `NAME.safetensors` and TensorBoard's files.
        accelerator: from `make_accelerator`; one per program.
        seed: of order, augmentation and dropout.
        depends: names all else that the result depends on (data, objective, the stage before); a checkpoint made under
            another is refused.

    Returns:
        The validation metrics after the last epoch.

    Raises:
        FloatingPointError: gradients are no longer finite; on every process, and before a checkpoint holds them.
        ValueError: `folder` holds a checkpoint of the same task that depends on something else, a rate is given to
            parameters that there are not, or there are fewer examples than a step takes.
    """
    main = accelerator.is_main_process
    device = accelerator.device
    sampler = EpochSampler(
        len(task.dataset),  # type: ignore[arg-type]
        config.batch_size,
        seed,
        accelerator.process_index,
        accelerator.num_processes,
        config.accumulate,
    )
    loader = batch_loader(task.dataset, sampler, config.workers, device)
    steps = len(sampler) // config.accumulate * config.epochs
    task.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions' fastest
    task.combiner.to(device)
    with _frozen(task.model, config), _progress(enabled=main and steps > 0) as progress:
        optimizer = torch.optim.AdamW(parameter_groups(task.model, config), fused=True)
        trained = Trained(task.model, task.combiner, optimizer)
        checkpoint = folder / f"{task.name}.safetensors"
        fingerprint = _fingerprint(task, config, accelerator.num_processes, seed, depends)
        position = trained.restore(checkpoint, fingerprint) or Position(0, 0, 0, fingerprint)
        schedule = LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, config), last_epoch=position.step - 1
        )
        model, stepper = accelerator.prepare(task.model, optimizer)
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # autocast where the loop says so, nowhere else
        writer = SummaryWriter(folder / "tensorboard" / task.name, purge_step=position.step) if main else None
        bar = progress.add_task(task.name, total=steps, completed=position.step, note="")
        step, metrics = position.step, {}
        saved = time.monotonic()
        broken = torch.zeros((), dtype=torch.bool, device=device)
        for epoch in range(position.epoch, config.epochs):
            first_batch = position.batch if epoch == position.epoch else 0
            sampler.start_at(epoch, first_batch)
            model.train()
            task.start_epoch(epoch / max(1, config.epochs - 1))
            for done, batch in enumerate(loader, start=first_batch + 1):
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                last = done % config.accumulate == 0
                with nullcontext() if last else accelerator.no_sync(model):
                    noise = _step_seed(seed, epoch * len(sampler) + done, accelerator.process_index)
                    values = _backward(task, model, batch, accelerator, config, noise)
                if not last:
                    continue
                norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
                broken |= ~torch.isfinite(torch.as_tensor(norm, device=device))
                stepper.step()
                stepper.zero_grad()
                step += 1
                if step % LOGGED_EVERY == 0 or step == steps:
                    _refuse_broken(task, broken, step)
                    if writer is not None:
                        writer.add_scalar("train/learning_rate", schedule.get_last_lr()[0], step)
                        for name, value in values.items():
                            writer.add_scalar(f"train/{name}", float(value), step)
                    progress.update(bar, completed=step, note=f"loss {float(values['loss']):.3f}")
                schedule.step()
                if main and done < len(sampler) and time.monotonic() - saved > 60 * config.checkpoint_minutes:
                    _refuse_broken(task, broken, step)
                    trained.save(checkpoint, Position(epoch, done, step, fingerprint))
                    saved = time.monotonic()
            _refuse_broken(task, broken, step)
            metrics = _evaluate(task)
            if main:
                trained.save(checkpoint, Position(epoch + 1, 0, step, fingerprint))
                saved = time.monotonic()
                if writer is not None:
                    for name, figure in metrics.items():
                        writer.add_scalar(f"val/{name}", figure, step)
                progress.console.print(
                    f"{task.name} epoch {epoch + 1}/{config.epochs}: {_line(metrics)}", soft_wrap=True
                )
                progress.console.file.flush()  # a log file should be as far along as the training
        if writer is not None:
            writer.close()
    task.model.eval()
    return metrics or _evaluate(task)  # nothing left to train: the checkpoint was complete


def batch_loader(
    dataset: Dataset[Batch], sampler: EpochSampler, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Loads batches in the sampler's order, into pinned memory for a GPU unless they lie on a device already."""
    elsewhere = getattr(dataset, "device", torch.device("cpu")).type != "cpu"
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=0 if elsewhere else workers,
        pin_memory=device.type == "cuda" and not elsewhere,
    )


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups of what is trained: matrices and convolutions decay, all else does not; each with its own peak rate.

    Raises:
        ValueError: `config.rates` names parameters that there are not.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in config.rates:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"rates: no parameter's name begins with {prefix!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = config.learning_rate * rate_factor(name, config)
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def rate_factor(name: str, config: TrainConfig) -> float:
    """The factor of a parameter's rate: that of the longest prefix of its name in `config.rates`, else 1."""
    fitting = [prefix for prefix in config.rates if name.startswith(prefix)]
    return config.rates[max(fitting, key=len)] if fitting else 1.0


def learning_rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, 2017); a factor of the peak rate."""
    warmup_steps = max(1, int(config.warmup * steps if config.warmup < 1 else config.warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))))


def _backward(
    task: Task[Any], model: nn.Module, batch: Batch, accelerator: Accelerator, config: TrainConfig, noise: int
) -> dict[str, Tensor]:
    """Adds a batch's gradients to the parameters'; returns the total, every loss and its weight, detached.

    With `config.chunk` the batch is computed in chunks twice, first without and then with what gradients need, so that
    memory is that of a chunk while the loss sees the whole batch (Gao et al., "Scaling Deep Contrastive Learning Batch
    Size under Memory Limited Setup", 2021). Equal to the plain gradients but for batch norm, which sees chunks.
    """

    def forward(part: Batch, number: int) -> Batch:
        torch.manual_seed(noise + number)  # dropout, the same both times
        with accelerator.autocast():
            return task.forward(model, part)

    if config.chunk is None:
        outputs = forward(batch, 0)
        total, values = _total(task, outputs, batch)
        accelerator.backward(total / config.accumulate)
        return values
    rows = len(next(iter(batch.values())))
    parts = [
        {name: tensor[start : start + config.chunk] for name, tensor in batch.items()}
        for start in range(0, rows, config.chunk)
    ]
    with torch.no_grad():
        computed = [forward(part, number) for number, part in enumerate(parts)]
    outputs = {
        name: (torch.cat([part[name] for part in computed]) if tensor.ndim else tensor).detach().requires_grad_()
        for name, tensor in computed[0].items()
    }
    total, values = _total(task, outputs, batch)
    accelerator.backward(total / config.accumulate)
    start = 0
    for number, part in enumerate(parts):
        with nullcontext() if number == len(parts) - 1 else accelerator.no_sync(model):
            again = forward(part, number)
            rows = len(next(iter(part.values())))
            pairs = [
                (tensor, gradient[start : start + rows] if tensor.ndim else gradient)
                for name, tensor in again.items()
                if (gradient := outputs[name].grad) is not None and (tensor.ndim or number == 0)
            ]
            torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
            start += rows
    return values


def _total(task: Task[Any], outputs: Batch, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    device = next(iter(outputs.values())).device
    with torch.autocast(device.type, enabled=False):
        exact = {
            name: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
            for name, tensor in outputs.items()
        }
        losses = task.losses(exact, batch)
        weights = task.combiner(losses)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    values = {"loss": total, **{f"loss/{name}": loss for name, loss in losses.items()}}
    values |= {f"weight/{name}": weight for name, weight in weights.items()} if len(losses) > 1 else {}
    return total, {name: value.detach() for name, value in (values | dict(task.scalars(exact))).items()}


def _evaluate(task: Task[Any]) -> dict[str, float]:
    """The task's metrics, those of the main process on all."""
    task.model.eval()
    with torch.no_grad():
        return broadcast_object_list([task.evaluate()])[0]


def _refuse_broken(task: Task[Any], broken: Tensor, step: int) -> None:
    """Raises where a gradient was not finite: the same on every process, since they share their gradients."""
    if bool(broken):
        raise FloatingPointError(f"{task.name}: gradients were not finite by step {step}; lower the learning rate")


@contextmanager
def _frozen(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Parameters of rate 0 need no gradient for as long as this lasts."""
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and rate_factor(name, config) == 0
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _step_seed(seed: int, batch: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, batch, process)).generate_state(1)[0])


def _fingerprint(task: Task[Any], config: TrainConfig, processes: int, seed: int, depends: str) -> str:
    """Names what a checkpoint must share with a run to continue it."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in task.model.state_dict().items()]
    rows = len(task.dataset)  # type: ignore[arg-type]
    text = repr((task.name, rows, config.identity(), seed, processes, shapes, depends))
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
