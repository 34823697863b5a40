"""Which images every step sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from fastslots.noise import derive_seed


@dataclass(frozen=True)
class BatchParts:
    """How processes and micro-batches share a step's batch: each takes neighbours, in order.

    Args:
        batch_size: Images per step, over all processes.
        accumulation: Micro-batches per process and step.
        processes: Processes.
        process: Which of them this one is.

    Raises:
        ValueError: If the batch cannot be shared evenly.
    """

    batch_size: int
    accumulation: int = 1
    processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.accumulation):
            raise ValueError(
                f"batch_size must be divisible by processes x accumulation, {self.processes} x "
                f"{self.accumulation}; got {self.batch_size}"
            )

    @property
    def size(self) -> int:
        """Images per micro-batch."""
        return self.batch_size // (self.processes * self.accumulation)

    def __iter__(self) -> Iterator[range]:
        """This process's micro-batches, as places in the step's batch."""
        first = self.process * self.accumulation * self.size
        for part in range(self.accumulation):
            yield range(first + part * self.size, first + (part + 1) * self.size)


class StepBatches(Sampler[list[int]]):
    """The indices of every step's batch: shuffled epochs, one after the other, without a short batch.

    The batch of a step follows from (seed, step) alone, so that a run may begin anywhere.

    Args:
        num_images: Size of the data set, at least 1.
        parts: The size of a batch, which may span epochs, and this process's micro-batches.
        seed: Of the order.
        first_step: The first step to give.
        steps: The step to stop before.
    """

    def __init__(
        self, num_images: int, parts: BatchParts, seed: int, first_step: int, steps: int
    ) -> None:
        self.num_images, self.parts, self.seed = num_images, parts, seed
        self.first_step, self.steps = first_step, steps

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.parts.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """One list per micro-batch of this process."""
        epoch, order = -1, []
        for step in range(self.first_step, self.steps):
            for part in self.parts:
                batch = []
                for place in part:
                    position = step * self.parts.batch_size + place
                    if position // self.num_images != epoch:
                        epoch = position // self.num_images
                        order = self._order(epoch)
                    batch.append(order[position % self.num_images])
                yield batch

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
        return torch.randperm(self.num_images, generator=generator).tolist()
