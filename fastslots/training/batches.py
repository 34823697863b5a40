"""Which images every step sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from fastslots.training.recipe import derive_seed


class StepBatches(Sampler[list[int]]):
    """The indices of every step's batch: shuffled epochs, one after the other, without a short batch.

    The batch of a step follows from (seed, step) alone, so that a run may begin anywhere.

    Args:
        num_images: Size of the data set, at least 1.
        batch_size: Images per step. A batch may span epochs.
        seed: Of the order.
        first_step: The first step to give.
        steps: The step to stop before.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int, first_step: int, steps: int
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.first_step, self.steps = first_step, steps

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, []
        for step in range(self.first_step, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = self._order(epoch)
                batch.append(order[position % self.num_images])
            yield batch

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
        return torch.randperm(self.num_images, generator=generator).tolist()
