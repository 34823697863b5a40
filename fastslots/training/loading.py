"""Images for the loop: decoded beside it, in the right dtype, on the right device."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fastslots.training.batches import StepBatches

MAX_WORKERS = 8


class ImageSet(Protocol):
    """A sized data set of images ``[3, S, S]``."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One image, ``[3, S, S]`` in [0, 1]."""
        ...


def workers_for(device: torch.device, processes_here: int) -> int:
    """How many processes should decode image files for one that trains on `device`.

    None on a CPU, which would have to share its cores with them.

    Args:
        device: That is trained on.
        processes_here: Training processes on this machine.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes_here - 1))


def step_images(
    images: ImageSet, batches: StepBatches, device: torch.device, dtype: torch.dtype, workers: int
) -> Generator[list[Tensor]]:
    """Yields each step's micro-batches, ``[B, 3, S, S]``.

    Args:
        images: What to train on.
        batches: Which of them.
        device: Where the result lies.
        dtype: Of the result.
        workers: Processes that load images; 0 loads in this one.

    Raises:
        OSError: If an image cannot be read, naming it.
    """
    loader: DataLoader[Tensor] = DataLoader(
        images,  # type: ignore[arg-type] # torch's Dataset is nominal
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=device.type == "cuda" and workers > 0,
    )
    step: list[Tensor] = []
    for batch in _readable(loader):
        step.append(batch.to(device, dtype, non_blocking=True))
        if len(step) == batches.parts.accumulation:
            yield step
            step = []


def validation_batches(
    images: ImageSet, part: range, size: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Some of the images in batches of `size`, ``[B, 3, S, S]``.

    Raises:
        OSError: If an image cannot be read, naming it.
    """
    subset: Subset[Tensor] = Subset(images, part)  # type: ignore[arg-type] # as above
    if not part:
        return []
    return [batch.to(device, dtype) for batch in _readable(DataLoader(subset, batch_size=size))]


def _readable(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """The batches; an error of a worker says in one line what happened."""
    batches: Any = iter(loader)
    try:
        yield from batches
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OSError(
            f"images could not be loaded: {reason}; checkpoints are as they were"
        ) from error
    finally:
        # The workers do not listen to signals, and an error would keep them and their queue alive.
        if loader.num_workers:
            batches._shutdown_workers()


def _ignore_signals(_: int) -> None:
    """An interrupt is for the process that trains, which ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
