"""A second model for the training engine: it keeps an image's mean colour in a few noisy numbers."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from fastslots.models.pretrained import PretrainedModel
from fastslots.models.recipe import Recipe
from fastslots.models.trainable import Trainable
from fastslots.noise import Noise
from fastslots.training import train
from tests.training.tiny import Images


@dataclass(frozen=True)
class ColourConfig:
    image_size: int = 8
    width: int = 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size


class ColourModel(PretrainedModel):
    kind = "ColourModel"
    config_class = ColourConfig

    def __init__(self, config: ColourConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = nn.Linear(3, config.width), nn.Linear(config.width, 3)

    def forward(self, image: Tensor, keys: Tensor) -> Tensor:
        """The mean colours as they come out, ``[B, 3]``; in training mode numbers are blurred on the way."""
        numbers: Tensor = self.encoder(image.mean((2, 3)))
        if self.training:
            numbers = numbers + 0.01 * Noise(keys).normal(1, numbers.shape[1], numbers.dtype)[:, 0]
        colours: Tensor = self.decoder(numbers)
        return colours


@dataclass(frozen=True)
class ColourRecipe(Recipe):
    """Args:
    lr_all: Of everything.
    """

    lr_all: float = 0.05

    def rates(self, step: int) -> dict[str, float]:
        return {"all": self.lr_all}


class TrainableColours(Trainable):
    model: ColourModel
    losses: ClassVar = {"error": "squared error per image"}
    step_line = "error {error:.3f}"
    validation_line = "held-out error {loss:.3f}"
    num_sums = 1

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"all": list(self.model.parameters())}

    def forward(self, image: Tensor, keys: Tensor, **schedule: Tensor) -> tuple[Tensor, ...]:
        return (self._errors(image, keys).mean(),)

    def validation_sums(self, image: Tensor, keys: Tensor, **schedule: float) -> Tensor:
        return self._errors(image, keys).double().sum().unsqueeze(0)

    def validation_means(self, sums: Tensor, num_images: int) -> dict[str, float]:
        return {"loss": float(sums[0]) / num_images}

    def draw(self, image: Tensor, keys: Tensor, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        colours = self.model(image, keys).clamp(0, 1).mul(255).byte()
        Image.fromarray(colours.unsqueeze(1).numpy()).save(path)

    def _errors(self, image: Tensor, keys: Tensor) -> Tensor:
        return (self.model(image, keys) - image.mean((2, 3))).square().sum(1)


class Killing(Images):
    """Images of which loading the given one, counted from 0, kills the process."""

    def __init__(self, count: int, at: int) -> None:
        super().__init__(count)
        self.at, self.loaded = at, 0

    def __getitem__(self, index: int) -> Tensor:
        if self.loaded == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.loaded += 1
        return super().__getitem__(index)


def train_colours(folder: Path, *, resume: bool = False, killed_at: int = -1) -> ColourModel:
    """Twelve steps of four images, a checkpoint and a picture after every fourth."""
    torch.manual_seed(0)
    model = ColourModel(ColourConfig())
    recipe = ColourRecipe(
        steps=12, batch_size=4, log_every=3, validate_every=4, validation_images=6, picture_images=2
    )
    images = Killing(10, killed_at)
    train(TrainableColours(model), recipe, images, Images(6, seed=1), folder, resume=resume)
    return model
