"""The order of examples: one permutation an epoch, shared out between processes, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class BatchRequest:
    """Which examples make a batch, and the seed of its random choices: a batch is a function of its request alone."""

    rows: np.ndarray
    seed: int


class EpochSampler(Sampler[BatchRequest]):
    """Batches of a permutation that depends on seed and epoch alone.

    Every process draws the same permutation and takes its own slice of each global batch, so the union of the slices
    is the batch that one process would have seen.  The last, incomplete batch is dropped, and with it what does not
    make a whole number of steps.

    Args:
        length: number of examples.
        batch_size: examples a process sees per batch.
        seed: of the whole run.
        process, processes: this process's number and how many there are.
        accumulate: batches that make a step.

    Raises:
        ValueError: there are fewer examples than one step takes.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, process: int = 0, processes: int = 1, accumulate: int = 1
    ) -> None:
        if length < batch_size * processes * accumulate:
            raise ValueError(
                f"{length} examples cannot fill one batch of {batch_size}"
                + (f", {accumulate} times," if accumulate > 1 else "")
                + f" on each of {processes} processes; use a smaller batch size"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.process = process
        self.processes = processes
        self.accumulate = accumulate
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.processes * self.accumulate) * self.accumulate

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Chooses the epoch, and the batch to begin with when a run is resumed in its middle."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[BatchRequest]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.processes + self.process) * self.batch_size
            seed = np.random.SeedSequence((self.seed, self.epoch, batch, self.process)).generate_state(1)[0]
            yield BatchRequest(order[start : start + self.batch_size], int(seed))
