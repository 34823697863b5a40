"""What evaluation and pictures know of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from fastslots.models.pretrained import PretrainedModel

Seen = TypeVar("Seen")


class Measurable(ABC, Generic[Seen]):
    """A model as `fastslots.evaluation` measures it, and as pictures show it.

    Images are ``[B, C, S, S]`` in [0, 1] in the model's dtype; the model is in eval mode.

    Args:
        model: The model, on any device.

    Attributes:
        ranked_by: The score that orders images whose objects are not known; the lowest is the best.
        segmentations: What is compared with true masks, by how the names of its metrics begin. Images are
            ranked by ``fg_ari``, the one whose names begin with nothing.
    """

    ranked_by: ClassVar[str]
    segmentations: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, model: PretrainedModel) -> None:
        self.model = model

    @abstractmethod
    def look(self, image: Tensor, keys: Tensor) -> Seen:
        """What all else follows from.

        Args:
            image: The images.
            keys: Of the noise, ``[B, 2]`` int32.

        Raises:
            NotFiniteError: If something that must be finite is not.
        """

    @abstractmethod
    def scores(self, image: Tensor, seen: Seen) -> dict[str, Tensor]:
        """Every score of every image by its name, ``[B]`` float64; finite but for a broken model."""

    @abstractmethod
    def segments(self, seen: Seen) -> dict[str, Tensor]:
        """The slot of every pixel, ``[B, S, S]`` of an integer dtype, for each of `segmentations`.

        Raises:
            ValueError: If what they follow from holds NaN.
        """

    def counts(self, seen: Seen) -> Tensor:
        """What is counted over all images, an integer tensor of one shape; `overall` says what for."""
        return torch.zeros(0, dtype=torch.int64)

    def overall(self, counts: Tensor, num_images: int) -> dict[str, float]:
        """Scores of all images together, by name.

        Args:
            counts: The sum of `counts` over all images, on the CPU.
            num_images: How many these are.
        """
        return {}

    @abstractmethod
    def panels(
        self, image: Tensor, seen: Seen, masks: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What a picture shows, on the CPU: columns by name and slots, as `fastslots.pictures.save_panels`.

        Args:
            image: The images.
            seen: What `look` gave of them.
            masks: The number of the true object at every pixel, ``[B, S, S]``. Default: not known.

        Raises:
            ValueError: If what is to be shown holds NaN.
        """
