"""The step in fused Triton kernels, as operators of PyTorch (see kernels/README.md).

`attend` reads the inputs and sums them under their softmax over the slots; `update`, a few short launches,
makes the next slots and their keys of it. Nothing of the inputs' size is written but what is
asked for, and the backward of a step keeps nothing of it.
"""

from fastslots_kernels.fused.limits import why_not, why_not_here
from fastslots_kernels.fused.step import FusedStep

__all__ = ["FusedStep", "why_not", "why_not_here"]
