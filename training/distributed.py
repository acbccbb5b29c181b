"""What several processes share: negatives with their gradients, and the rows of an evaluation.

Without a process group every function gives back what it was given, so callers need no second path.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather_with_gradients(tensor: Tensor) -> Tensor:
    """The tensors [B, …] of all processes as one [processes · B, …], through which gradients flow back to each.

    The gradient that a process receives is the sum over all processes' losses. Where every process computes the same
    loss on all rows and gradients are averaged over processes, as DistributedDataParallel does, weights move as under
    one process with the whole batch.
    """
    return torch.cat(all_gather(tensor)) if dist.is_initialized() else tensor


def own_rows(rows: np.ndarray) -> np.ndarray:
    """The part of some rows that this process is to evaluate; `gather_parts` puts the answers together."""
    if not dist.is_initialized():
        return rows
    return np.array_split(rows, dist.get_world_size())[dist.get_rank()]


def gather_parts(part: Tensor, total: int) -> Tensor:
    """What the processes computed for their `own_rows` of `total` rows, [part, …] each, as [total, …] on all."""
    if not dist.is_initialized():
        return part
    lengths = [len(rows) for rows in np.array_split(np.arange(total), dist.get_world_size())]
    padded = part.new_zeros(max(lengths), *part.shape[1:])
    padded[: len(part)] = part
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([whole[:length] for whole, length in zip(gathered, lengths, strict=True)])
