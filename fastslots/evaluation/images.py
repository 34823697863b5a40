"""What can be evaluated on: data sets of images, with or without masks of their objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class ImageSet(Protocol):
    """A sized data set of images ``[3, S, S]`` in [0, 1]; ``__getitems__`` is used where it is there."""

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


def load(
    images: ImageSet | MaskedImageSet, numbers: Sequence[int], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Some images in dtype and device of a tensor, and their masks on this device if there are any."""
    indices = list(numbers)
    if isinstance(images, MaskedImageSet):
        batch = images.batch(indices)
        return batch.images.to(like), batch.masks.to(like.device)
    fetch = getattr(images, "__getitems__", None)
    return torch.stack(fetch(indices) if fetch else [images[i] for i in indices]).to(like), None
