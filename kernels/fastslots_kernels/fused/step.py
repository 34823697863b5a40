"""The object that prepares the fused steps of one call. Imports no Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslots_kernels.fixed_point import Step
from fastslots_kernels.fused import ops
from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.limits import tile_dtype
from fastslots_kernels.weights import SlotAttentionWeights


class FusedStep(Step):
    """Steps by the fused kernels; a tracked one keeps the inputs, the slots that entered it and K-sized sums.

    Products run in the dtype of the inputs (under autocast, in its dtype), everything else in float32, or
    float64 for float64. Products of float32 use TF32 where PyTorch is told to.

    Arguments as in `fastslots_kernels.slot_attention`, already checked.
    """

    stops_on_device = True

    def __init__(
        self,
        inputs: Tensor,
        slots: Tensor,
        weights: SlotAttentionWeights,
        *,
        num_heads: int,
        epsilon: float,
        mask: Tensor | None,
        keep: bool,
    ) -> None:
        self.inputs, self.mask, self.keep = inputs, mask, keep
        self.attn_dtype = slots.dtype
        self.normed: Tensor | None = None  # x̃, once iterations have made it
        self.weights = list(weights.named_tensors().values())
        self.options = num_heads, float(epsilon), list(weights.norm_eps)
        dtype = tile_dtype(inputs)  # autocast's, which must not touch the products of weights
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            matrices = ops.fold(self.weights, num_heads, dtype)
            self.folded = list(FoldedWeights.of(matrices, weights))

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, float32 or float64, and the softmax ``[B, N, K]``.

        The softmax is summed over heads and has the dtype of the call's slots.
        """
        new, attn, *_ = ops.step(
            self.inputs,
            slots,
            self.mask,
            self.normed,
            self.weights,
            self.folded,
            *self.options,
            self.attn_dtype if return_attn else None,
            self.keep,
        )
        return new, attn if return_attn else None

    def iterate(
        self, slots: Tensor, num_iterations: int, tolerance: float | None
    ) -> tuple[Tensor, Tensor]:
        """At least one iteration without a graph: float32 or float64 slots, and the iterations used."""
        num_heads, epsilon, norm_eps = self.options
        found, used, normed = ops.iterate(
            self.inputs.detach(),
            slots.detach(),
            self.mask,
            self.folded,
            num_heads,
            num_iterations,
            tolerance,
            epsilon,
            norm_eps,
        )
        self.normed = normed if normed.numel() else None
        return found, used
