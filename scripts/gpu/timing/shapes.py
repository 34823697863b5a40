"""The papers' shapes, as the stages run them."""

from __future__ import annotations

from fastslots.benchmark import Case
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import SHAPES

# Those with goals first.
PAPERS = ("slate64", "slate128", "clevr", "slate96", "dinosaur", "dinosaur24")
DRY_RUN = ("slate64",)  # tiny, all shapes are one
BASELINES = ("slate64", "slate128", "clevr", "slate96", "dinosaur")
# Of fewer images the largest error of rounding is a matter of luck.
TINY = Sizes(
    batch=16, num_inputs=12, input_size=8, num_slots=3, slot_size=8, num_heads=1, mlp_size=8
)


def case_of(shape: str, tiny: bool) -> Case:
    """A paper's shape in bfloat16 autocast at its number of iterations."""
    sizes, num_iterations = (TINY, 2) if tiny else SHAPES[shape]
    return Case.of(shape, sizes, precision="bf16", iterations=(num_iterations,))
