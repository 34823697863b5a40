"""The settings of a slot autoencoder, checked once, when they are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastslots.models.slot_config import SlotConfig
from fastslots_kernels.checks import check_multiple

BROADCAST_SIZE = 8
"""Side of the grid that a slot is broadcast to before transposed convolutions double it."""


@dataclass(frozen=True)
class SlotAutoencoderConfig(SlotConfig):
    """Everything that fixes a slot autoencoder but its weights; what any model has is `SlotConfig`'s.

    Args:
        backbone: ``"pixels"``: 5 x 5 convolutions, a slot attention input for every pixel, and a decoder that
            doubles an 8 x 8 grid (Locatello et al. 2020; ``image_size`` is 16, 32, 64, 128 and so on).
            ``"patches"``: one input per patch and an MLP that decodes it, many times cheaper.
        patch_size: Side of a patch in pixels, even; divides ``image_size``. Without patches of no account.
        width: Channels of encoder and decoder.
        whiten: Whether training begins with whitening the colours; see `Whitening`.

    Raises:
        TypeError: If a setting has the wrong type, naming it and the value.
        ValueError: If a setting breaks its rule, naming the setting, the rule and the value.

    Source:
        Locatello et al. 2020, "Object-Centric Learning with Slot Attention"; the defaults are those of its
        object discovery on CLEVR.
    """

    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **SlotConfig.choices,
        "backbone": ("pixels", "patches"),
    }

    image_size: int = 128
    backbone: str = "pixels"
    patch_size: int = 4
    width: int = 64
    whiten: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone == "patches":
            if self.patch_size % 2:
                raise ValueError(f"patch_size must be even; got {self.patch_size}")
            check_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        elif self.image_size not in {BROADCAST_SIZE << doublings for doublings in range(1, 16)}:
            raise ValueError(
                f"image_size must be {BROADCAST_SIZE} doubled at least once, 16, 32, 64, 128 and so on, with "
                f"backbone='pixels'; got {self.image_size}"
            )

    @property
    def grid_size(self) -> int:
        """Slot attention inputs per side; N is its square."""
        return self.image_size // (self.patch_size if self.backbone == "patches" else 1)

    @property
    def painted_size(self) -> int:
        """Side in pixels of the squares that the decoder gives."""
        return self.patch_size if self.backbone == "patches" else self.image_size
