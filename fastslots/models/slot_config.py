"""The settings that all models with slots share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.settings import check_fields
from fastslots.slot_init import KINDS
from fastslots_kernels.api import GRADIENTS, INIT_GRADIENTS, MOST_EPSILON
from fastslots_kernels.backends import BACKENDS
from fastslots_kernels.checks import check_count, check_multiple, check_number


@dataclass(frozen=True)
class SlotConfig:
    """What fixes a model's images and its slot attention; a model's own config adds the rest.

    Args:
        image_size: Pixels per side of the square images.
        image_channels: Channels of the images.
        num_slots: Slots drawn when none are given, ``K``.
        slot_size: Width of a slot, ``D``.
        mlp_hidden_size: Hidden width of the slot update's MLP.
        num_iterations: Slot attention steps, as ``fastslots.SlotAttention`` counts them: all of them
            when ``gradient="unrolled"``, those before the tracked step otherwise.
        num_slot_heads: Heads of slot attention; divides ``slot_size``.
        gradient: ``"unrolled"`` or ``"neumann"``.
        neumann_terms: Terms of the Neumann series.
        init_gradient: ``"none"`` or ``"straight-through"``.
        slot_init: ``"gaussian"`` or ``"learned"``.
        backend: Of slot attention, and of the self-attention of SLATE's decoder in training: ``"auto"``,
            ``"triton"``, ``"torch"`` or ``"reference"``, plain PyTorch throughout, which takes most memory
            and has derivatives of every order.
        epsilon: Added to the slots' attention before its normalisation over the inputs.

    Attributes:
        may_be_zero: Names of the numbers that may be 0.
        choices: What a text may be, by name.
        added_after: The setting after which a command's help has those that a model's own config adds.
        since: Settings that a version before this one did not save, and what they were then.

    Raises:
        TypeError: If a setting has the wrong type, naming it and the value.
        ValueError: If a setting breaks its rule, naming the setting, the rule and the value.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("num_iterations", "epsilon")
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        "gradient": GRADIENTS,
        "init_gradient": INIT_GRADIENTS,
        "slot_init": KINDS,
        "backend": BACKENDS,
    }
    added_after: ClassVar[str] = "image_channels"
    since: ClassVar[Mapping[str, Any]] = {}

    image_size: int = 64
    image_channels: int = 3
    num_slots: int = 7
    slot_size: int = 64
    mlp_hidden_size: int = 128
    num_iterations: int = 3
    num_slot_heads: int = 1
    gradient: str = "neumann"
    neumann_terms: int = 1
    init_gradient: str = "none"
    slot_init: str = "gaussian"
    backend: str = "auto"
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero=self.may_be_zero, choices=self.choices)
        check_number("epsilon", self.epsilon, least=0, below=MOST_EPSILON)
        if self.gradient == "unrolled":
            check_count("num_iterations", self.num_iterations, 1, " with gradient='unrolled'")
        check_multiple("slot_size", self.slot_size, "num_slot_heads", self.num_slot_heads)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, S, S)`` of an image."""
        return self.image_channels, self.image_size, self.image_size
