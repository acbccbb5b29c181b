"""What kernel 1 computes of logits: the rows' labels, the sparse table of targets and the settings of the loss.

One value that front doors, operators, Triton and torch path hand on; its fields in their order are the operators'
arguments. What can be seen without waiting for a device (shapes, types, devices, settings) is checked where one is
made; labels and ids themselves inside the operators, on real tensors.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABEL_DTYPES = (torch.int64, torch.int32)
MAX_TABLE_WIDTH = 256
"""Most entries (neighbours and the class itself) a table row may have."""
SCHEMA = (
    "Tensor labels, Tensor neighbour_ids, Tensor neighbour_weights, Tensor? class_weight, "
    "float gamma, float kl_weight, float temperature, SymInt ignore_index"
)
"""The fields as torch.library writes them."""


class Objective(NamedTuple):
    """Fields as in `kernels.label_kl.focal_label_kl`."""

    labels: Tensor
    neighbour_ids: Tensor
    neighbour_weights: Tensor
    class_weight: Tensor | None = None
    gamma: float = 2.0
    kl_weight: float = 1.0
    temperature: float = 1.0
    ignore_index: int = -100

    def of_rows(self, rows: slice) -> Objective:
        """The objective of some of the rows."""
        return self._replace(labels=self.labels[rows])

    def contiguous(self) -> Objective:
        """With tensors that a kernel can index."""
        return self._replace(
            labels=self.labels.contiguous(),
            neighbour_ids=self.neighbour_ids.contiguous(),
            neighbour_weights=self.neighbour_weights.contiguous(),
            class_weight=None if self.class_weight is None else self.class_weight.contiguous(),
        )

    def check(self, like: Tensor, classes: int) -> None:
        """Raise ValueError unless shapes, types, devices and settings fit `like` [B, ...] and the number of classes."""
        check_table(classes, self.neighbour_ids, self.neighbour_weights, like)
        check_labels("labels", self.labels, (like.shape[0],), like)
        if self.class_weight is not None:
            if self.class_weight.dtype != torch.float32:
                raise ValueError(f"class_weight: expected float32, got {self.class_weight.dtype}")
            if tuple(self.class_weight.shape) != (classes,):
                raise ValueError(f"class_weight: expected shape ({classes},), got {tuple(self.class_weight.shape)}")
            if self.class_weight.device != like.device:
                raise ValueError(f"class_weight: expected device {like.device}, got {self.class_weight.device}")
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma: expected a number >= 0, got {self.gamma}")
        if not math.isfinite(self.kl_weight):
            raise ValueError(f"kl_weight: expected a finite number, got {self.kl_weight}")
        check_temperature(self.temperature)

    def check_values(self, classes: int) -> None:
        """Look at labels and ids; on a device only when asked to."""
        check_values("labels", self.labels, classes, self.ignore_index)
        check_values("neighbour_ids", self.neighbour_ids, classes)


def check_table(classes: int, neighbour_ids: Tensor, neighbour_weights: Tensor, like: Tensor) -> None:
    """Raise ValueError unless both are tables [classes, K+1] of their types on `like`'s device."""
    if neighbour_ids.dtype not in LABEL_DTYPES:
        raise ValueError(f"neighbour_ids: expected one of {names(LABEL_DTYPES)}, got {neighbour_ids.dtype}")
    if neighbour_weights.dtype != torch.float32:
        raise ValueError(f"neighbour_weights: expected float32, got {neighbour_weights.dtype}")
    for name, table in (("neighbour_ids", neighbour_ids), ("neighbour_weights", neighbour_weights)):
        if table.dim() != 2 or table.shape[0] != classes or not 1 <= table.shape[1] <= MAX_TABLE_WIDTH:
            raise ValueError(
                f"{name}: expected [{classes}, K+1] with K+1 from 1 to {MAX_TABLE_WIDTH}, got {tuple(table.shape)}"
            )
        if table.device != like.device:
            raise ValueError(f"{name}: expected device {like.device}, got {table.device}")
    if neighbour_ids.shape != neighbour_weights.shape:
        raise ValueError(
            f"neighbour_weights: expected neighbour_ids' shape {tuple(neighbour_ids.shape)}, "
            f"got {tuple(neighbour_weights.shape)}"
        )


def check_labels(name: str, labels: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ValueError unless labels have this shape, a type of labels and `like`'s device."""
    if labels.dtype not in LABEL_DTYPES:
        raise ValueError(f"{name}: expected one of {names(LABEL_DTYPES)}, got {labels.dtype}")
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(labels.shape)}")
    if labels.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {labels.device}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless it is a number above 0."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")


def check_values(name: str, values: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Look at labels or ids; on a device only with SHELFWISE_CHECK_IDS=1, since it waits for the device."""
    if values.numel() == 0 or (values.device.type != "cpu" and os.environ.get("SHELFWISE_CHECK_IDS") != "1"):
        return
    lowest, highest = values.aminmax()
    if lowest >= 0 and highest < classes:
        return
    outside = (values < 0) | (values >= classes)
    if ignore_index is not None:
        outside &= values != ignore_index
    if outside.any():
        allowed = f"0 to {classes - 1}" + ("" if ignore_index is None else f" or ignore_index {ignore_index}")
        raise ValueError(f"{name}: expected {allowed}, got {values[outside][0].item()}")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Types as a message lists them: "float32, bfloat16"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
