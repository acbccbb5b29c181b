"""Checkpoints of a running training: model, optimiser and position in one safetensors file.

Safetensors rather than torch.save because no pickle is ever loaded, and one file because it is replaced atomically.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from catalogue.atomic import atomic_file


@dataclass(frozen=True)
class Position:
    """Where a training stands: `batch` batches of `epoch` are done; `fingerprint` names the run's configuration."""

    epoch: int
    batch: int
    step: int
    fingerprint: str


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Replaces the checkpoint at `path`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with atomic_file(path) as aside:
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            aside,
            metadata={"position": json.dumps(asdict(position))},
        )


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> Position | None:
    """Restores the checkpoint at `path` into model and optimiser; None when there is none to use.

    Raises:
        ValueError: the checkpoint belongs to a run with another configuration.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        position = Position(**json.loads(file.metadata()["position"]))
        if position.fingerprint != fingerprint:
            raise ValueError(f"{path} belongs to a run with other settings; remove it, or choose another run folder")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            parameter = parameters[int(number)]
            if (
                tensor.shape == parameter.shape
            ):  # a moment: laid out as its parameter, which fused AdamW takes for granted
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return position
