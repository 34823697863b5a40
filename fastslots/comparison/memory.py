"""Scenes that are rendered once and then lie in the device's memory: no step waits for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fastslots.data.scenes import Scenes

AT_A_TIME = 512


@dataclass(frozen=True)
class Loaded:
    """Some scenes: images ``[B, 3, S, S]`` float32 in [0, 1], and masks ``[B, S, S]`` uint8."""

    images: Tensor
    masks: Tensor


@dataclass(frozen=True)
class SceneMemory:
    """Rendered scenes.

    Attributes:
        pixels: ``[M, 3, S, S]`` uint8.
        masks: Number of the object at every pixel, 0 for none, ``[M, S, S]`` uint8.
    """

    pixels: Tensor
    masks: Tensor

    @classmethod
    def of(cls, scenes: Scenes, device: torch.device, limit_s: float) -> Self:
        """Renders scenes where the data set says, the first ones first.

        Args:
            scenes: What to render.
            device: Where the result lies.
            limit_s: Render no more after this many seconds, but some.
        """
        start = time.perf_counter()
        pixels, masks = [], []
        for first in range(0, len(scenes), AT_A_TIME):
            batch = scenes.batch(range(first, min(first + AT_A_TIME, len(scenes))))
            pixels.append((batch.images * 255).round().to(device, torch.uint8))
            masks.append(batch.masks.to(device))
            if time.perf_counter() - start > limit_s:
                break
        return cls(torch.cat(pixels), torch.cat(masks))

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` in [0, 1] of ``[B]`` int64 indices on the device."""
        return self.pixels.index_select(0, indices).float() / 255

    def batch(self, indices: Sequence[int]) -> Loaded:
        """Some scenes with their masks, as an evaluation wants them."""
        numbers = torch.tensor(list(indices), device=self.pixels.device)
        return Loaded(self.images(numbers), self.masks.index_select(0, numbers))
