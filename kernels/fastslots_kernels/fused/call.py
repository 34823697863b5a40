"""What all launches of one call share, and how its inputs are split. Made once, by the operators."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.plans import (
    Plan,
    UpdatePlan,
    attend_plan,
    backward_plan,
    num_splits,
    update_plan,
)
from fastslots_kernels.fused.reductions import reduce_splits
from fastslots_kernels.fused.sizes import Sizes

# A program of the slot update reads the splits of its rows one after another: of many, a launch of its own
# adds them up in parallel.
_MOST_SPLITS_READ = 16


class Call(NamedTuple):
    """What all steps of one call share."""

    inputs: Tensor  # [B, N, C]
    mask: Tensor | None  # [B, N] of `attend.mask_dtype`: 0 where an input is not valid
    w: FoldedWeights
    sizes: Sizes
    epsilon: float
    norm_eps: tuple[float, float, float]  # of the inputs, of the slots, before the MLP
    precision: str  # of products of float32: "ieee" or "tf32"

    @property
    def tile(self) -> torch.dtype:
        """Dtype of the operands of matrix products."""
        return self.w.key_weight.dtype

    @property
    def accumulator(self) -> torch.dtype:
        """Dtype of all that is no operand of a matrix product."""
        return self.w.scale.dtype

    @property
    def update_plan(self) -> UpdatePlan:
        """How slots are updated."""
        return update_plan(self.sizes, self.tile)

    @property
    def backward_plan(self) -> Plan:
        """How the inputs are passed over in the backward."""
        groups = has_warp_groups(self.inputs.device)
        return backward_plan(self.sizes, self.tile, warp_groups=groups)

    def attend_plan(self, normed: Tensor | None) -> Plan:
        """How the inputs, or what was stored of them, are attended to."""
        read = self.inputs if normed is None else normed
        return attend_plan(self.sizes, self.tile, read.dtype, normed=normed is not None)

    def new_sums(self, plan: Plan | None = None) -> Tensor:
        """Memory for the sums of every split of a plan, or of all inputs, ``[B, S, sums_size]``."""
        sizes, device = self.sizes, self.inputs.device
        splits = 1
        if plan is not None:
            splits = num_splits(sizes.batch, sizes.num_inputs, plan, num_processors(device))
        shape = (sizes.batch, splits, sizes.sums_size)
        return self.inputs.new_empty(shape, dtype=self.accumulator)

    def rows(self, slots: Tensor) -> Tensor:
        """Slots, or their gradient, ``[B, K, D]`` as ``[R, D]``, contiguous, in the accumulator's dtype."""
        shape = (self.sizes.rows, self.sizes.slot_size)
        return slots.to(self.accumulator).reshape(shape).contiguous()


def few_splits(sums: Tensor, sizes: Sizes) -> Tensor:
    """Sums of so few splits that whoever reads them may add them up."""
    return sums if sums.shape[1] <= _MOST_SPLITS_READ else reduce_splits(sums, sizes)


@lru_cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a device. Elsewhere a number that gives several splits."""
    if device.type == "cuda":
        count: int = torch.cuda.get_device_properties(device).multi_processor_count
        return count
    return 8


@lru_cache
def has_warp_groups(device: torch.device) -> bool:
    """Whether a device multiplies by warp groups, as GPUs of compute capability 9.0 do and no later ones."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
