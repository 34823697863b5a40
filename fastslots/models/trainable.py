"""What the training engine knows of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from fastslots.data.images import ImageSet
from fastslots.models.pretrained import PretrainedModel


class Trainable(nn.Module, ABC):
    """A model as `fastslots.training` trains it; CONTRIBUTING.md says what else one brings.

    Called, it gives the losses, whose sum is minimised. Images are ``[B, C, S, S]`` in [0, 1] in the model's
    dtype. All noise follows from one key per image, ``[B, 2]`` int32, and what is to be added up over batches
    and processes is a sum over images in float64: so neither changes a result but for rounding.

    Args:
        model: The model, on any device. Its config says the ``image_shape``, ``(C, S, S)``.

    Attributes:
        losses: Unit of every loss, by its name in the log, in the order in which they are returned.
        looks: Unit of whatever else is logged of a step's images, by name; see `look`.
        step_line: How a line of the log is shown to those who watch, with its names in braces.
        validation_line: The same of a validation.
    """

    losses: ClassVar[Mapping[str, str]]
    looks: ClassVar[Mapping[str, str]] = {}
    step_line: ClassVar[str]
    validation_line: ClassVar[str]

    def __init__(self, model: PretrainedModel) -> None:
        super().__init__()
        self.model = model

    def begin(self, images: ImageSet) -> None:
        """Called once, before the first step of a new run, in every process: what to learn from beforehand.

        Args:
            images: That are trained on, in [0, 1].
        """

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn, each once, by what shares a learning rate, as in `Recipe.rates`."""

    @abstractmethod
    def forward(self, image: Tensor, keys: Tensor, **schedule: Tensor) -> tuple[Tensor, ...]:
        """The losses of a batch: scalars, means over its images. In training mode.

        Args:
            image: The batch.
            keys: Of the noise.
            **schedule: Scalars on the device, those of `Recipe.schedule`.
        """

    def look(self, image: Tensor, keys: Tensor) -> Tensor:
        """Sums over the images of what `looks` names, ``[len(looks)]`` float64.

        In eval mode and without a graph, as all that follows. NaN throughout ends the run.
        """
        raise NotImplementedError(f"{type(self).__name__} names looks, but has no look")

    @property
    @abstractmethod
    def num_sums(self) -> int:
        """How many numbers `validation_sums` gives."""

    @abstractmethod
    def validation_sums(self, image: Tensor, keys: Tensor, **schedule: float) -> Tensor:
        """What of held-out images is added up, ``[num_sums]`` float64."""

    @abstractmethod
    def validation_means(self, sums: Tensor, num_images: int) -> dict[str, float]:
        """What a validation found, by name; the lowest ``"loss"`` is the best.

        Args:
            sums: `validation_sums` of all images, on the CPU.
            num_images: How many these are.
        """

    @abstractmethod
    def draw(self, image: Tensor, keys: Tensor, path: Path) -> None:
        """Writes a picture of what the model makes of images, a row each, as a PNG file.

        Raises:
            OSError: If it cannot be written.
        """
