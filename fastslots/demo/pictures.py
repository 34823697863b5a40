"""What the demo's models make of held-out scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastslots.data.scenes import Scenes
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.registry import measurable_of
from fastslots.noise import sample_keys
from fastslots.pictures import save_panels

SHOWN = 6
BESIDE = 4


def draw_objects(model: PretrainedModel, scenes: Scenes, path: Path) -> None:
    """Draws the first scenes, a row each: image, reconstruction, objects, masks, attention, slots.

    Raises:
        OSError: If the file cannot be written.
    """
    columns, slots = _panels(model, scenes, SHOWN)
    save_panels(path, columns, slots)


def draw_beside(models: Mapping[str, PretrainedModel], scenes: Scenes, path: Path) -> None:
    """Draws the first scenes, each in as many rows as there are models.

    Raises:
        OSError: If the file cannot be written.
    """
    drawn = [_panels(model, scenes, BESIDE) for model in models.values()]
    columns = {name: _in_turns([each[0][name] for each in drawn]) for name in drawn[0][0]}
    slots = _in_turns([each[1] for each in drawn])
    save_panels(path, columns, slots, row_labels=[*models] * (len(slots) // len(models)))


@torch.no_grad()
def _panels(model: PretrainedModel, scenes: Scenes, count: int) -> tuple[dict[str, Tensor], Tensor]:
    numbers = range(min(count, len(scenes)))
    batch, measurable = scenes.batch(numbers), measurable_of(model)
    image = batch.images.to(model.device)
    keys = sample_keys(numbers, 0, "evaluation").to(model.device)
    return measurable.panels(image, measurable.look(image, keys), batch.masks)


def _in_turns(tensors: list[Tensor]) -> Tensor:
    """First rows, then second rows, ..."""
    return torch.stack(tensors, 1).flatten(0, 1)
