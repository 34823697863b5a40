"""A data set that refuses what a model cannot be trained on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastslots.data.images import ImageSet, check_image, check_not_empty, fetch_images


class CheckedImages:
    """A data set whose images are looked at whenever they are loaded.

    On a CUDA device, for which a look would wait, only dtype and shape are checked, but for the first image.

    Args:
        name: Of the data set, for messages.
        images: The data set.
        shape: Of the model's images, ``(C, S, S)``.

    Attributes:
        corrupt: The corrupt files that the data set has found so far, each with the reason.

    Raises:
        TypeError: Here and whenever an image is loaded, if it is no floating point tensor.
        ValueError: If there is no image; here and later, if one has another size, or values beyond [0, 1].
    """

    def __init__(self, name: str, images: ImageSet, shape: tuple[int, int, int]) -> None:
        check_not_empty(name, images)
        self.name, self.images, self.shape = name, images, shape
        self.corrupt: dict[Path, str] = getattr(images, "corrupt", {})
        check_image(name, 0, images[0], self.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        loaded = fetch_images(self.images, indices)
        for index, image in zip(indices, loaded, strict=True):
            check_image(self.name, index, image, self.shape, wait=False)
        return loaded
