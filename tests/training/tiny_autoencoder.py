"""An autoencoder that trains in milliseconds, whitening and Muon included; also as a program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fastslots.models.autoencoder import (
    SlotAutoencoder,
    SlotAutoencoderConfig,
    SlotAutoencoderRecipe,
    TrainableSlotAutoencoder,
)
from fastslots.training import train
from tests.training.colours import Killing
from tests.training.tiny import Images

TINY: dict[str, Any] = {
    "image_size": 8,
    "backbone": "patches",
    "width": 8,
    "num_slots": 3,
    "slot_size": 8,
    "mlp_hidden_size": 8,
    "num_iterations": 2,
    "whiten": True,
}
RECIPE: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "muon": 20.0,
    "clip": 1.0,
    "lr_main": 1e-3,
    "warmup_steps": 3,
    "decay": "cosine",
    "entropy": 0.1,
    "entropy_steps": 6,
    "log_every": 3,
    "validate_every": 4,
    "validation_images": 6,
    "picture_images": 2,
}


def tiny_autoencoder(**changes: Any) -> TrainableSlotAutoencoder:
    torch.manual_seed(0)
    return TrainableSlotAutoencoder(SlotAutoencoder(SlotAutoencoderConfig(**(TINY | changes))))


def autoencoder_recipe(**changes: Any) -> SlotAutoencoderRecipe:
    return SlotAutoencoderRecipe(**(RECIPE | changes))


def train_autoencoder(
    folder: Path, *, resume: bool = False, killed_at: int = -1, **changes: Any
) -> SlotAutoencoder:
    """Twelve steps of four of ten images, a checkpoint and a picture after every fourth."""
    folder.mkdir(exist_ok=True)
    trainable, recipe = tiny_autoencoder(), autoencoder_recipe(**changes)
    train(trainable, recipe, Killing(10, killed_at), Images(6, seed=1), folder, resume=resume)
    return trainable.model


if __name__ == "__main__":
    train_autoencoder(Path(sys.argv[1]), precision="float64")
