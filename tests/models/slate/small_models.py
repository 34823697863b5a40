"""Models small enough to compare in float64, away from their initial zeros and ones."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastslots.models.slate import SLATE, SLATEConfig
from fastslots.models.slate.reference import PublicSLATE

M = TypeVar("M", bound=nn.Module)

SETTINGS: dict[str, Any] = {
    "image_size": 16,
    "vocab_size": 40,
    "d_model": 24,
    "num_decoder_blocks": 3,
    "num_decoder_heads": 4,
    "num_slots": 3,
    "slot_size": 16,
    "mlp_hidden_size": 20,
    "num_iterations": 3,
    "gradient": "unrolled",
}
NOT_IN_SHAPES = ("num_slots", "num_iterations", "num_decoder_heads", "num_slot_heads", "gradient")


def small_config(**changes: Any) -> SLATEConfig:
    return SLATEConfig(**{**SETTINGS, **changes})


def small_model(seed: int = 0, **changes: Any) -> SLATE:
    torch.manual_seed(seed)
    return perturbed(SLATE(small_config(**changes)))


def official_pair(seed: int = 0, **changes: Any) -> tuple[PublicSLATE, SLATE]:
    """The public form and the model loaded from its state dict, in float64 and training mode."""
    config = small_config(**changes)
    torch.manual_seed(seed)
    public = perturbed(PublicSLATE(config)).double()
    return public, SLATE.from_official(public.state_dict(), **keywords(config)).train()


def keywords(config: SLATEConfig) -> dict[str, Any]:
    """What `from_official` cannot read from shapes."""
    return {name: getattr(config, name) for name in (*NOT_IN_SHAPES, "dropout")}


def images(
    batch_size: int = 5, size: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, 3, size, size, generator=generator, dtype=dtype)


def initial_slots(
    batch_size: int = 5, num_slots: int = 3, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch_size, num_slots, 16, generator=generator, dtype=dtype)


def perturbed(model: M) -> M:
    """Moves every parameter, so that no zero bias and no unit scale hides an error."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
