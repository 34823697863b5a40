"""The step as one node of the graph, and the object that prepares it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastslots_kernels.projection_free.backward import step_backward
from fastslots_kernels.projection_free.forward import (
    attend,
    compute_dtype,
    normalize,
    slot_keys,
    tile_dtype,
    update_slots,
)
from fastslots_kernels.weights import SlotAttentionWeights


class ProjectionFreeStep:
    """Steps that read the inputs and keep nothing of their size for the backward.

    The inputs are normalised once and shared by all steps. A tracked step keeps the inputs and the slots
    that enter it, and computes the rest again in its backward. Products with the inputs run in their dtype
    (under autocast, in its dtype), everything else in float32, or float64 for float64.

    Arguments as in `fastslots_kernels.slot_attention`, already checked.
    """

    def __init__(
        self,
        inputs: Tensor,
        weights: SlotAttentionWeights,
        *,
        num_heads: int,
        epsilon: float,
        mask: Tensor | None,
    ) -> None:
        self.inputs, self.weights, self.mask = inputs, weights, mask
        self.num_heads, self.epsilon = num_heads, epsilon
        with torch.no_grad():
            eps = weights.norm_inputs_eps
            self.normalized = normalize(inputs, mask, eps, tile_dtype(inputs)).values

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, and the softmax ``[B, N, K]`` summed over heads."""
        w = self.weights
        with torch.autocast(self.inputs.device.type, enabled=False):
            new, attn = _Step.apply(
                self.inputs,
                slots,
                self.normalized,
                self.mask,
                self.num_heads,
                self.epsilon,
                w.norm_eps,
                *w.named_tensors().values(),
            )
        if not return_attn:
            return new, None
        if self.num_heads > 1:
            b, virtual, n = attn.shape
            attn = attn.view(b, self.num_heads, virtual // self.num_heads, n).sum(1)
        return new, attn.to(slots.dtype).transpose(1, 2)


class _Step(torch.autograd.Function):
    """The step as one node of the graph: (new slots, softmax ``[B, H K, N]``)."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        slots: Tensor,
        normalized: Tensor,
        mask: Tensor | None,
        num_heads: int,
        epsilon: float,
        norm_eps: tuple[float, float, float],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        w = SlotAttentionWeights.from_tensors(tensors, norm_eps).to(compute_dtype(inputs))
        keys = slot_keys(slots.to(w.dtype), w, num_heads)
        maps = attend(normalized, keys.m, keys.c, mask, epsilon)
        new = update_slots(slots.to(w.dtype), maps.sums, maps.total, w, num_heads)
        ctx.save_for_backward(inputs, slots, mask, *tensors)
        ctx.options = num_heads, epsilon, norm_eps, normalized.dtype
        ctx.set_materialize_grads(False)
        return new.to(slots.dtype), maps.attn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_new: Tensor | None, d_attn: Tensor | None) -> tuple[Any, ...]:
        inputs, slots, mask, *tensors = ctx.saved_tensors
        num_heads, epsilon, norm_eps, dtype = ctx.options
        with torch.autocast(inputs.device.type, enabled=False):  # a backward may run under autocast
            d_inputs, d_slots, d_weights = step_backward(
                inputs,
                slots,
                SlotAttentionWeights.from_tensors(tensors, norm_eps),
                d_new,
                d_attn,
                mask=mask,
                num_heads=num_heads,
                epsilon=epsilon,
                tile_dtype=dtype,
                need_inputs=ctx.needs_input_grad[0],
            )
        return d_inputs, d_slots, None, None, None, None, None, *d_weights
