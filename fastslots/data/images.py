"""Data sets of images, with or without masks of their objects, and checks of what they give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

_ROUNDING = 1e-3  # that resizing and conversions may leave beyond [0, 1]


class ImageSet(Protocol):
    """A sized data set of images ``[C, S, S]`` in [0, 1]; ``__getitems__`` is used where it is there."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One image."""
        ...


class MaskedBatch(Protocol):
    """Images and what is to be found in them."""

    @property
    def images(self) -> Tensor:
        """``[B, 3, S, S]`` in [0, 1]."""
        ...

    @property
    def masks(self) -> Tensor:
        """Number of the object at every pixel, 0 for the background, ``[B, S, S]`` uint8."""
        ...


@runtime_checkable
class MaskedImageSet(Protocol):
    """A data set that knows the objects of its images, as `fastslots.data.scenes.Scenes` does."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def batch(self, indices: Sequence[int], /) -> MaskedBatch:
        """Some of the images with their masks."""
        ...


def load_batch(
    images: ImageSet | MaskedImageSet, indices: list[int], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor | None]:
    """Some images, ``[B, C, S, S]``, and their masks if they have any.

    Args:
        images: The data set.
        indices: Which of them.
        shape: ``(C, S, S)``, the model's.

    Raises:
        TypeError: As `check_image`.
        ValueError: As `check_image`.
    """
    loaded: Iterable[Tensor]
    if isinstance(images, MaskedImageSet):
        batch = images.batch(indices)
        loaded, masks = batch.images, batch.masks
    else:
        loaded, masks = fetch_images(images, indices), None
    for index, image in zip(indices, loaded, strict=True):
        check_image("images", index, image, shape)
    return loaded if isinstance(loaded, Tensor) else torch.stack(list(loaded)), masks


def fetch_images(images: ImageSet, indices: list[int]) -> list[Tensor]:
    """Some of the images, at once if the data set can do that."""
    fetch = getattr(images, "__getitems__", None)
    return fetch(indices) if fetch else [images[index] for index in indices]


def check_not_empty(name: str, images: Sized) -> None:
    """Raises ValueError for a data set without images."""
    if not len(images):
        raise ValueError(f"{name} must hold at least one image; got 0")


def check_image(
    name: str, number: int, image: object, shape: Sequence[int], *, wait: bool = True
) -> None:
    """Raises unless an image is what a model takes; NaN is left to the checks of results.

    Args:
        name: Of the data set, for the message.
        number: Of the image in it.
        image: Should be floating point of that shape in [0, 1].
        shape: ``(C, S, S)``, the model's.
        wait: Whether to look at values that are not on the CPU, which waits for their device.

    Raises:
        TypeError: If it is no tensor, or not of floating point.
        ValueError: If its shape is another, or a value lies outside [0, 1].
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name}[{number}] must be a tensor; got {type(image).__name__}: give a data set of images "
            "alone, without labels, as tensors"
        )
    if not image.is_floating_point():
        raise TypeError(
            f"{name}[{number}] must be floating point in [0, 1]; got {image.dtype}: convert it, and "
            "divide values of 0 to 255 by 255"
        )
    if tuple(image.shape) != tuple(shape):
        raise ValueError(
            f"{name}[{number}] must have the model's shape {tuple(shape)}; got {tuple(image.shape)}: "
            "resize the images, channels first, or make a model of their size"
        )
    if image.device.type != "cpu" and not wait:
        return
    low, high = torch.stack(image.detach().aminmax()).tolist()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"{name}[{number}] must lie in [0, 1]; got {low:g} to {high:g}: divide values of 0 to 255 by "
            "255, undo a normalisation, clamp what resizing overshot"
        )
