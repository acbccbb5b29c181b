"""Checkpoints of a running training: model, optimiser, combiner of losses and position in one safetensors file.

Safetensors rather than torch.save because no pickle is ever loaded, and one file because it is replaced atomically.
The main process alone reads and writes it: other machines of a cluster need not see its disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from catalogue.atomic import atomic_file


@dataclass(frozen=True)
class Position:
    """Where a training stands: `batch` batches of `epoch` are done; `fingerprint` names all that it depends on."""

    epoch: int
    batch: int
    step: int
    fingerprint: str


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds the state of."""

    model: nn.Module
    combiner: nn.Module
    optimizer: torch.optim.Optimizer

    def save(self, path: Path, position: Position) -> None:
        """Replaces the checkpoint at `path`."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"combiner.{name}": tensor for name, tensor in self.combiner.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
        with atomic_file(path) as aside:
            save_file(
                {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
                aside,
                metadata={"position": json.dumps(asdict(position))},
            )

    def restore(self, path: Path, fingerprint: str) -> Position | None:
        """Takes on the state of the checkpoint that the main process finds at `path`; None when there is none.

        Raises:
            ValueError: the checkpoint belongs to a run that depends on something else; on every process.
        """
        found = broadcast_object_list([_read(path)])[0]
        if found is None:
            return None
        position, tensors = found
        if position.fingerprint != fingerprint:
            raise ValueError(f"{path} belongs to a run with other settings; remove it, or choose another run folder")
        self.model.load_state_dict(_part(tensors, "model."))
        self.combiner.load_state_dict(_part(tensors, "combiner."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, key = name.split(".", 1)
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape:  # a moment: fused AdamW takes its parameter's layout for granted
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return position


def _read(path: Path) -> tuple[Position, dict[str, Tensor]] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        position = Position(**json.loads(file.metadata()["position"]))
        return position, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
