"""Images for the loop: decoded beside it, in the right dtype, on the right device."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fastslots.data.images import ImageSet, fetch_images
from fastslots.training.batches import StepBatches

MAX_WORKERS = 8
_KINDS = (OSError, TypeError, ValueError)


class _Batch(NamedTuple):
    """Images ``[B, C, S, S]``, and the corrupt files that were met since the last batch, with the reasons."""

    images: Tensor
    corrupt: list[tuple[Path, str]]


class _Batches(Dataset[_Batch]):
    """Whole batches of a data set.

    A worker process has a copy of the data set, whose record of corrupt files nobody else sees: so each
    batch brings what is new in it.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.corrupt: dict[Path, str] = getattr(images, "corrupt", {})
        self.told = len(self.corrupt)

    def __getitems__(self, indices: list[int]) -> _Batch:
        batch: Tensor = default_collate(fetch_images(self.images, indices))
        new = list(islice(self.corrupt.items(), self.told, None))
        self.told += len(new)
        return _Batch(batch, new)


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
    """Yields each step's micro-batches, ``[B, C, S, S]``.

    Args:
        images: What to train on; if it has a dict ``corrupt``, this gets what the workers found.
        batches: Which of them.
        device: Where the result lies.
        dtype: Of the result.
        workers: Processes that load images; 0 loads in this one.

    Raises:
        OSError: If an image cannot be read, naming it.
        TypeError: As the data set.
        ValueError: As the data set.
    """
    pinned = device.type == "cuda" and workers > 0
    step: list[Tensor] = []
    for batch in _load(images, batches, workers=workers, pin_memory=pinned):
        step.append(batch.to(device, dtype, non_blocking=True))
        if len(step) == batches.parts.accumulation:
            yield step
            step = []


def validation_batches(
    images: ImageSet, part: range, size: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Some of the images in batches of `size`, ``[B, C, S, S]``.

    Raises:
        OSError: If an image cannot be read, naming it.
        TypeError: As the data set.
        ValueError: As the data set.
    """
    if not part:
        return []
    numbers = [list(part[start : start + size]) for start in range(0, len(part), size)]
    return [batch.to(device, dtype) for batch in _load(images, numbers)]


def _load(
    images: ImageSet, numbers: Iterable[list[int]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Tensor]:
    """Batches of a data set; an error of a worker says in one line what happened."""
    source = _Batches(images)
    loader: DataLoader[_Batch] = DataLoader(
        source,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
    )
    batches: Any = iter(loader)
    try:
        for batch in batches:
            source.corrupt.update(batch.corrupt)
            yield batch.images
    except _KINDS as error:
        kind = next(kind for kind in _KINDS if isinstance(error, kind))
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise kind(f"images could not be loaded: {reason}; checkpoints are as they were") from error
    finally:
        # The workers do not listen to signals, and an error would keep them and their queue alive.
        if workers:
            batches._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """An interrupt is for the process that trains, which ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
