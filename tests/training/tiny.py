"""A SLATE that trains in milliseconds, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import TensorDataset

from fastslots.models.slate import SLATE, SLATEConfig, SLATERecipe, TrainableSLATE

TINY = {
    "image_size": 8,
    "vocab_size": 8,
    "d_model": 8,
    "num_decoder_blocks": 1,
    "num_decoder_heads": 2,
    "num_slots": 3,
    "slot_size": 8,
    "mlp_hidden_size": 8,
    "num_iterations": 2,
}

TINY_FLAGS = [
    part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))
] + ["--device", "cpu", "--dvae-steps", "0", "--decay", "none"]
"""Of `fastslots train`; whose learning rates do not depend on the number of steps."""


class Images(TensorDataset):
    """Random images ``[3, 8, 8]``."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.rand(count, 3, 8, 8, generator=generator))

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tensors[0][index]


def tiny_model(**changes: Any) -> SLATE:
    torch.manual_seed(0)
    return SLATE(SLATEConfig(**(TINY | changes)))


def tiny(**changes: Any) -> TrainableSLATE:
    return TrainableSLATE(tiny_model(**changes))


def tiny_recipe(**changes: Any) -> SLATERecipe:
    numbers: dict[str, Any] = {
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 4,
        "tau_steps": 4,
        "validate_every": 3,
        "validation_images": 6,
        "picture_images": 2,
        "log_every": 2,
    }
    return SLATERecipe(**(numbers | changes))
