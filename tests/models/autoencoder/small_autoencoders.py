"""Autoencoders small enough to compare in float64, away from their initial zeros and ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastslots.models.autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from tests.models.slate.small_models import perturbed

SETTINGS: dict[str, Any] = {
    "image_size": 16,
    "width": 8,
    "num_slots": 3,
    "slot_size": 6,
    "mlp_hidden_size": 10,
    "num_iterations": 3,
    "gradient": "unrolled",
}
PATCHES: dict[str, Any] = {"backbone": "patches", "patch_size": 4}


def small_config(**changes: Any) -> SlotAutoencoderConfig:
    return SlotAutoencoderConfig(**{**SETTINGS, **changes})


def small_model(seed: int = 0, **changes: Any) -> SlotAutoencoder:
    torch.manual_seed(seed)
    return perturbed(SlotAutoencoder(small_config(**changes)))


def whitened_model(dtype: torch.dtype = torch.float64, **changes: Any) -> SlotAutoencoder:
    """One whose colours are those of some images, whitened."""
    model = small_model(**changes).to(dtype)
    model.whitening.fit(list(coloured_images(12)))
    return model


def coloured_images(batch_size: int, size: int = 16, seed: int = 1) -> Tensor:
    """Images whose channels differ in their spread and go together."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch_size, 3, size, size, generator=generator, dtype=torch.float64)
    mix = torch.tensor([[0.6, 0.1, 0.2], [0.5, 0.3, 0.0], [0.1, 0.0, 0.1]], dtype=torch.float64)
    return torch.einsum("dc,bchw->bdhw", mix, noise)


def initial_slots(batch_size: int = 2, num_slots: int = 3, slot_size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch_size, num_slots, slot_size, generator=generator, dtype=torch.float64)
