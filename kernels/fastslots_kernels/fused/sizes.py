"""Sizes of one call, and how its K-sized tensors lie in memory."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

# Rows of slots of a program.
BLOCK_ROWS = 16  # in the update's backward, which leaves a row of vectors for each
MEAN_ROWS = 4  # of weighted means


class VectorColumns(NamedTuple):
    """Where in a row of `update_backward.new_vectors` the gradient of each vector begins, and where all end.

    In the order of the fields of `SlotAttentionWeights`.
    """

    norm_inputs_weight: int  # for every head, as is the next
    norm_inputs_bias: int
    norm_slots_weight: int
    norm_slots_bias: int
    norm_mlp_weight: int
    norm_mlp_bias: int
    gru_bias_ih: int
    gru_bias_hh: int
    mlp_0_bias: int
    mlp_2_bias: int
    end: int


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

        Gradients of ``m`` and bias lie alike. Padded, so that every image starts at an aligned address.
        """
        return ceil_div(self.virtual * (self.input_size + 1), 16) * 16

    @property
    def vectors(self) -> VectorColumns:
        """Columns of the gradients of vectors."""
        w, d, m = self.width, self.slot_size, self.mlp_size
        return VectorColumns(*accumulate((w, w, d, d, d, d, 3 * d, 3 * d, m, d), initial=0))


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def padded(size: int) -> int:
    """The next power of two, at least 16: what a tile of that size takes up."""
    power = 16
    while power < size:  # comparisons: a compiler may leave the size itself open
        power *= 2
    return power
