"""The settings of a SLATE model, checked once, when they are written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.models.slot_config import SlotConfig
from fastslots_kernels.checks import check_multiple, check_number

PATCH_SIZE = 4
"""Pixels per side of the patch that one token stands for."""
POSITION_INITS = ("normal", "smooth")


@dataclass(frozen=True)
class SLATEConfig(SlotConfig):
    """Everything that fixes a SLATE model but its weights; what any model has is `SlotConfig`'s.

    Args:
        image_size: Pixels per side of the square images, a multiple of 4.
        vocab_size: Tokens the dVAE chooses from, ``V``.
        d_model: Width of the token embeddings and of the transformer decoder.
        num_decoder_blocks: Blocks of the transformer decoder.
        num_decoder_heads: Attention heads per block; divides ``d_model``.
        dropout: Dropout probability of embeddings and transformer, in [0, 1).
        whiten: Whether training begins with whitening the colours that the dVAE sees and paints; see
            `Whitening`.
        draw_tokens: Whether in training the tokens of slots and transformer are drawn, as in the public code,
            or the likeliest, as they are in use. Those of a young dVAE are mostly noise when drawn.
        position_init: Initial embeddings of the positions: ``"normal"``, each drawn on its own, as in the
            public code; or ``"smooth"``, in which neighbours are alike from the first step; see
            `smooth_positions`.

    Raises:
        TypeError: If a setting has the wrong type, naming it and the value.
        ValueError: If a setting breaks its rule, naming the setting, the rule and the value.

    Source:
        Singh et al. 2022, "Illiterate DALL-E Learns to Compose"; the defaults are those of the
        paper's larger data sets.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = (*SlotConfig.may_be_zero, "dropout")
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **SlotConfig.choices,
        "position_init": POSITION_INITS,
    }
    since: ClassVar[Mapping[str, Any]] = {
        "whiten": False,
        "draw_tokens": True,
        "position_init": "normal",
    }

    vocab_size: int = 4096
    d_model: int = 192
    num_decoder_blocks: int = 8
    num_decoder_heads: int = 8
    dropout: float = 0.1
    whiten: bool = False
    draw_tokens: bool = True
    position_init: str = "normal"
    num_slots: int = 6
    slot_size: int = 192
    mlp_hidden_size: int = 192
    num_iterations: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dropout", self.dropout, least=0, below=1)
        check_multiple("image_size", self.image_size, "the patch size", PATCH_SIZE)
        check_multiple("d_model", self.d_model, "num_decoder_heads", self.num_decoder_heads)

    @property
    def grid_size(self) -> int:
        """Tokens per side."""
        return self.image_size // PATCH_SIZE

    @property
    def num_tokens(self) -> int:
        """Tokens per image, ``N``."""
        return self.grid_size**2
