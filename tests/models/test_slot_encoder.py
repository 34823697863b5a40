"""Features to slots, as all models do it."""

from __future__ import annotations

import pytest
import torch

from fastslots.models.slot_config import SlotConfig
from fastslots.models.slot_encoder import SlotEncoder
from fastslots.noise import Noise, sample_keys


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_narrow_features_leave_the_gradients_of_norms_as_they_are(backend: str) -> None:
    """PyTorch's layer norm on a CPU sums them in bfloat16: of 65,536 rows it finds a third of them."""
    torch.manual_seed(0)
    config = SlotConfig(num_slots=3, slot_size=8, mlp_hidden_size=8, backend=backend)
    encoder = SlotEncoder(config, 8)
    features = torch.randn(16, 4096, 8).bfloat16()
    keys = sample_keys(range(16), 0)

    def gradients(*, autocast: bool) -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            given = features if autocast else features.to(encoder.layer_norm.weight.dtype)
            slots, _ = encoder(given, None, Noise(keys))
        slots.square().sum().backward()
        norms = {
            "features": encoder.layer_norm,
            "inputs": encoder.slot_attention.norm_inputs,
        }
        return {name: norm.weight.grad.double() for name, norm in norms.items()}

    narrow = gradients(autocast=True)
    encoder.double()
    exact = gradients(autocast=False)
    for name, expected in exact.items():
        error = (narrow[name] - expected).norm() / expected.norm()
        # Products in bfloat16, rounded to 2^-9, one after the other: there are fewer than sixteen.
        assert error < 16 * 2**-9, name
