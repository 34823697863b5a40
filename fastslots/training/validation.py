"""What a model makes of held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path

import torch
from torch import Tensor

from fastslots.models.modes import eval_mode
from fastslots.models.trainable import Trainable
from fastslots.noise import sample_keys


def check_numbers(
    method: str, found: Tensor, names: Sized, dtype: torch.dtype | None = None
) -> None:
    """Raises unless a method of a `Trainable` gave a number for each name: one alone would count for all.

    Raises:
        ValueError: Naming the method, what it must give, and what it gave.
    """
    if found.shape != (len(names),) or dtype not in (None, found.dtype):
        wanted = f"{len(names)} numbers" + (f" of {dtype}" if dtype else "")
        raise ValueError(
            f"{method} must give {wanted}; got shape {list(found.shape)}, {found.dtype}"
        )


@torch.no_grad()
def validate(
    trainable: Trainable,
    batches: Sequence[Tensor],
    schedule: Mapping[str, float],
    seed: int,
    *,
    first_image: int = 0,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """What the model finds in eval mode, as its `Trainable.validation_means` says.

    An image's noise follows from `seed` and its number, whatever the batches and processes.

    Args:
        trainable: On any device, in any mode.
        batches: Images in [0, 1], ``[B, C, S, S]`` each, on the model's device.
        schedule: Of the recipe at this step.
        seed: Of the noise.
        first_image: Number of the first image.
        add_up: Adds a float64 tensor over the processes that have the other images. Default: there are none.

    Raises:
        ValueError: If a method of the trainable does not give what it says.
    """
    model = trainable.model
    total = torch.zeros(1 + trainable.num_sums, dtype=torch.float64, device=model.device)
    with eval_mode(model):
        for batch in batches:
            keys = validation_keys(first_image, len(batch), seed).to(batch.device)
            sums = trainable.validation_sums(batch, keys, **schedule)
            check_numbers("validation_sums", sums, range(trainable.num_sums), torch.float64)
            total[0] += len(batch)
            total[1:] += sums
            first_image += len(batch)
    if add_up is not None:
        total = add_up(total)
    means = trainable.validation_means(total[1:].cpu(), int(total[0]))
    if "loss" not in means:
        raise ValueError(
            f"validation_means must give a 'loss', by which runs are judged; got {list(means)}"
        )
    return means


def validation_keys(first: int, count: int, seed: int) -> Tensor:
    """The keys of some held-out images, ``[count, 2]`` int32."""
    return sample_keys(range(first, first + count), seed, "validation")


@torch.no_grad()
def draw(trainable: Trainable, image: Tensor, path: Path, seed: int) -> None:
    """Draws what the model makes of images: those of a validation whose first images these are.

    Args:
        trainable: On any device, in any mode.
        image: Images in [0, 1], ``[B, C, S, S]``, on the model's device.
        path: PNG file to write.
        seed: Of the noise.

    Raises:
        OSError: If it cannot be written.
    """
    with eval_mode(trainable.model):
        trainable.draw(image, validation_keys(0, len(image), seed).to(image.device), path)
