"""What can be evaluated on: data sets of images, with or without masks of their objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastslots.data.images import ImageSet, check_image, fetch_images
from fastslots.models.slate import SLATE


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


def load(
    images: ImageSet | MaskedImageSet, numbers: Sequence[int], model: SLATE
) -> tuple[Tensor, Tensor | None]:
    """Some images in dtype and on the device of a model, and their masks there if they have any.

    Raises:
        TypeError: If an image is no floating point tensor.
        ValueError: If one is not of the model's size, or has values beyond [0, 1].
    """
    indices, like = list(numbers), model.positional_encoder.pe
    if isinstance(images, MaskedImageSet):
        batch = images.batch(indices)
        _check(indices, batch.images, model)
        return batch.images.to(like), batch.masks.to(like.device)
    loaded = fetch_images(images, indices)
    _check(indices, loaded, model)
    return torch.stack(loaded).to(like), None


def _check(numbers: Sequence[int], images: Iterable[Tensor], model: SLATE) -> None:
    size = model.config.image_size
    for number, image in zip(numbers, images, strict=True):
        check_image("images", number, image, (model.config.image_channels, size, size))
