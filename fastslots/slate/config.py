"""The settings of a SLATE model, checked once, when they are written down."""

import math
from dataclasses import dataclass, fields

PATCH_SIZE = 4
"""Pixels per side of the patch that one token stands for."""

_CHOICES = {
    "gradient": ("unrolled", "neumann", "broyden"),
    "init_gradient": ("none", "straight-through"),
    "slot_init": ("gaussian", "learned"),
    "backend": ("auto", "triton", "torch", "reference"),
}


@dataclass(frozen=True)
class SLATEConfig:
    """Everything that fixes a SLATE model but its weights.

    Args:
        image_size: Pixels per side of the square images, a multiple of 4.
        image_channels: Channels of the images.
        vocab_size: Tokens the dVAE chooses from, ``V``.
        d_model: Width of the token embeddings and of the transformer decoder.
        num_decoder_blocks: Blocks of the transformer decoder.
        num_decoder_heads: Attention heads per block; divides ``d_model``.
        dropout: Dropout probability of embeddings and transformer, in [0, 1).
        num_slots: Slots drawn when none are given, ``K``.
        slot_size: Width of a slot, ``D``.
        mlp_hidden_size: Hidden width of the slot update's MLP.
        num_iterations: Slot attention steps, as ``fastslots.SlotAttention`` counts them: all of them
            when ``gradient="unrolled"``, those before the tracked step otherwise.
        num_slot_heads: Heads of slot attention; divides ``slot_size``.
        gradient: ``"unrolled"``, ``"neumann"`` or ``"broyden"``.
        neumann_terms: Terms of the Neumann series.
        init_gradient: ``"none"`` or ``"straight-through"``.
        slot_init: ``"gaussian"`` or ``"learned"``.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``: of slot attention and of the
            decoder's self-attention in training.
        epsilon: Added to the slots' attention before its normalisation over the inputs.

    Raises:
        ValueError: If a setting breaks its rule, naming the setting, the rule and the value.

    Source:
        Singh et al. 2022, "Illiterate DALL-E Learns to Compose"; the defaults are those of the
        paper's larger data sets.
    """

    image_size: int = 64
    image_channels: int = 3
    vocab_size: int = 4096
    d_model: int = 192
    num_decoder_blocks: int = 8
    num_decoder_heads: int = 8
    dropout: float = 0.1
    num_slots: int = 6
    slot_size: int = 192
    mlp_hidden_size: int = 192
    num_iterations: int = 7
    num_slot_heads: int = 1
    gradient: str = "neumann"
    neumann_terms: int = 1
    init_gradient: str = "none"
    slot_init: str = "gaussian"
    backend: str = "auto"
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                _check_int(field.name, value, least=0 if field.name == "num_iterations" else 1)
            elif field.type is float:
                _check_float(field.name, value)
            elif value not in _CHOICES[field.name]:
                raise ValueError(
                    f"{field.name} must be one of {_CHOICES[field.name]}, got {value!r}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.epsilon < 0:
            raise ValueError(f"epsilon must not be negative, got {self.epsilon}")
        if self.gradient == "unrolled" and self.num_iterations < 1:
            raise ValueError("num_iterations must be at least 1 with gradient='unrolled', got 0")
        self._check_divides("image_size", PATCH_SIZE, "the patch size")
        self._check_divides("d_model", self.num_decoder_heads, "num_decoder_heads")
        self._check_divides("slot_size", self.num_slot_heads, "num_slot_heads")

    @property
    def num_tokens(self) -> int:
        """Tokens per image, ``N``."""
        return (self.image_size // PATCH_SIZE) ** 2

    def _check_divides(self, name: str, divisor: int, divisor_name: str) -> None:
        value = getattr(self, name)
        if value % divisor:
            raise ValueError(f"{name} must be a multiple of {divisor_name} {divisor}, got {value}")


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_float(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
