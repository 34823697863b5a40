"""The settings of a SLATE model, checked once, when they are written down."""

from dataclasses import dataclass

from fastslots.settings import check_fields
from fastslots.slot_init import KINDS
from fastslots_kernels.api import GRADIENTS, INIT_GRADIENTS, MOST_EPSILON
from fastslots_kernels.backends import BACKENDS
from fastslots_kernels.checks import check_count, check_multiple, check_number

PATCH_SIZE = 4
"""Pixels per side of the patch that one token stands for."""

_CHOICES = {
    "gradient": GRADIENTS,
    "init_gradient": INIT_GRADIENTS,
    "slot_init": KINDS,
    "backend": BACKENDS,
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
        gradient: ``"unrolled"`` or ``"neumann"``.
        neumann_terms: Terms of the Neumann series.
        init_gradient: ``"none"`` or ``"straight-through"``.
        slot_init: ``"gaussian"`` or ``"learned"``.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``: of slot attention and of the
            decoder's self-attention in training. ``"reference"`` is plain PyTorch throughout, which takes
            most memory and has derivatives of every order.
        epsilon: Added to the slots' attention before its normalisation over the inputs.

    Raises:
        TypeError: If a setting has the wrong type, naming it and the value.
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
        check_fields(self, may_be_zero=("num_iterations", "dropout", "epsilon"), choices=_CHOICES)
        check_number("dropout", self.dropout, least=0, below=1)
        check_number("epsilon", self.epsilon, least=0, below=MOST_EPSILON)
        if self.gradient == "unrolled":
            check_count("num_iterations", self.num_iterations, 1, " with gradient='unrolled'")
        check_multiple("image_size", self.image_size, "the patch size", PATCH_SIZE)
        check_multiple("d_model", self.d_model, "num_decoder_heads", self.num_decoder_heads)
        check_multiple("slot_size", self.slot_size, "num_slot_heads", self.num_slot_heads)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, S, S)`` of an image."""
        return self.image_channels, self.image_size, self.image_size

    @property
    def num_tokens(self) -> int:
        """Tokens per image, ``N``."""
        return (self.image_size // PATCH_SIZE) ** 2
