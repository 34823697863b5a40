"""Sizes of one call, and how its K-sized tensors lie in memory."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Sizes of one call.

    Every pair of a slot j and a head h is a *virtual slot*, number ``j H + h``. So the keys of all virtual
    slots of one slot are one row of width ``H C``, and heads exist only where inputs are attended to.
    """

    batch: int  # B
    num_inputs: int  # N
    input_size: int  # C
    num_slots: int  # K
    slot_size: int  # D
    num_heads: int  # H
    mlp_size: int  # M

    @property
    def rows(self) -> int:
        """Slots of the whole batch, ``B K``."""
        return self.batch * self.num_slots

    @property
    def virtual(self) -> int:
        """Virtual slots of one image, ``K H``."""
        return self.num_slots * self.num_heads

    @property
    def width(self) -> int:
        """``H C``: what one slot's virtual slots have of the inputs' width."""
        return self.num_heads * self.input_size

    @property
    def sums_size(self) -> int:
        """Entries of one image's sums: ``U`` ``[K H, C]``, then ``Z`` ``[K H]``, then padding.

        The gradients of ``m`` and ``c`` lie alike. Padded, so that every image starts at an aligned address.
        """
        return -(-(self.virtual * (self.input_size + 1)) // 16) * 16


def padded(size: int) -> int:
    """The next power of two, at least 16: what a tile of that size takes up."""
    power = 16
    while power < size:  # comparisons: a compiler may leave the size itself open
        power *= 2
    return power
