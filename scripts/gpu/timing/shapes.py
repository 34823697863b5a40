"""The papers' shapes, as the stages run them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslots.benchmark import Case, preset

# By shape, T of its paper; those with goals first.
ITERATIONS = {
    "slate64": 7,
    "slate128": 7,
    "clevr": 3,
    "slate96": 7,
    "dinosaur": 3,
    "dinosaur24": 3,
}
DRY_RUN = ("slate64",)  # tiny, all shapes are one
BASELINES = ("slate64", "slate128", "clevr", "slate96", "dinosaur")
TINY: dict[str, Any] = {
    "batch": 16,  # of fewer the largest error of rounding is a matter of luck
    "num_inputs": 12,
    "input_size": 8,
    "num_slots": 3,
    "slot_size": 8,
    "mlp_hidden_size": 8,
}


def case_of(shape: str, tiny: bool) -> Case:
    """A paper's shape in bfloat16 autocast at its number of iterations."""
    (case,) = preset(shape)
    case = replace(case, precision="bf16", iterations=(ITERATIONS[shape],))
    return replace(case, **TINY, iterations=(2,)) if tiny else case
