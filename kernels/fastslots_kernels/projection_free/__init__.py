"""One slot-attention step without keys or values, in plain PyTorch (see kernels/README.md).

Matrix products are re-associated so that the key and value projections act on the slots: the logits are
``x̃ mᵀ + c`` with K-sized ``m`` and ``c``, and the weighted mean is taken over ``x̃``, the inputs normalised
without affine. Maps over inputs are kept as ``[B, H K, N]``: the softmax over the slots then runs over a
strided axis and vectorises along ``N``, on a CPU over ten times as fast as over a short contiguous axis.
"""

from fastslots_kernels.projection_free.step import ProjectionFreeStep

__all__ = ["ProjectionFreeStep"]
