"""The step as one node of the graph, and the object that prepares it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.autocast import without_autocast
from fastslots_kernels.derivatives import first_order
from fastslots_kernels.fixed_point import Step
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


class ProjectionFreeStep(Step):
    """Steps that read the inputs and keep nothing of their size for the backward.

    The inputs are normalised once and shared by all steps. A tracked step keeps the inputs, the slots
    that enter it and their K-sized sums, and computes the rest again in its backward. Products with the
    inputs run in their dtype (under autocast, in its dtype), everything else in float32, or float64 for
    float64.

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
            self.untracked_weights = weights.to(compute_dtype(inputs))
        self.memory: _Memory | None = None

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, and the softmax ``[B, N, K]`` summed over heads.

        Without a graph, steps share the memory of their maps: the attention is valid until the next call.
        """
        with without_autocast(self.inputs.device):
            new, attn = self._tracked(slots) if torch.is_grad_enabled() else self._untracked(slots)
        if not return_attn:
            return new, None
        if self.num_heads > 1:
            b, virtual, n = attn.shape
            attn = attn.view(b, self.num_heads, virtual // self.num_heads, n).sum(1)
        return new, attn.to(slots.dtype).transpose(1, 2)

    def _untracked(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        if self.memory is None:
            self.memory = _new_memory(self.normalized, slots, self.num_heads)
        w = self.untracked_weights
        new, _, _ = _forward(
            self.normalized, slots, w, self.mask, self.num_heads, self.epsilon, *self.memory
        )
        return new, self.memory.attn

    def _tracked(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = _Step.apply(
            self.inputs,
            slots,
            self.normalized,
            self.mask,
            self.num_heads,
            self.epsilon,
            self.weights.norm_eps,
            *self.weights.named_tensors().values(),
        )
        return result


class _Memory(NamedTuple):
    """Memory for two maps over the inputs, ``[B, H K, N]``: two tensors, since only one stays alive."""

    attn: Tensor
    scratch: Tensor


def _new_memory(x: Tensor, slots: Tensor, num_heads: int) -> _Memory:
    shape = (slots.shape[0], num_heads * slots.shape[1], x.shape[1])
    attn, scratch = (x.new_empty(shape, dtype=compute_dtype(x)) for _ in range(2))
    return _Memory(attn, scratch)


def _forward(
    x: Tensor,
    slots: Tensor,
    w: SlotAttentionWeights,
    mask: Tensor | None,
    num_heads: int,
    epsilon: float,
    attn: Tensor,
    scratch: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new slots, ``U`` and ``Z``; ``attn`` receives the softmax."""
    old = slots.to(w.dtype)
    keys = slot_keys(old, w, num_heads)
    sums, total = attend(x, keys.m, keys.c, mask, epsilon, attn, scratch)
    return update_slots(old, sums, total, w, num_heads).to(slots.dtype), sums, total


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
        memory = _new_memory(normalized, slots, num_heads)
        new, sums, total = _forward(normalized, slots, w, mask, num_heads, epsilon, *memory)
        ctx.save_for_backward(inputs, slots, sums, total, mask, *tensors)
        ctx.options = num_heads, epsilon, norm_eps, normalized.dtype
        ctx.set_materialize_grads(False)
        if torch.compiler.is_compiling():
            # The compiler of torch 2.11 loses the gradient of an output that is a view or was written
            # in place. Compiled, the copies cost nothing.
            return new.clone(), memory.attn.clone()
        return new, memory.attn

    @staticmethod
    @first_order('backend "torch"')
    def backward(ctx: Any, d_new: Tensor | None, d_attn: Tensor | None) -> tuple[Any, ...]:
        inputs, slots, sums, total, mask, *tensors = ctx.saved_tensors
        num_heads, epsilon, norm_eps, dtype = ctx.options
        with without_autocast(inputs.device):  # a backward may run under autocast
            d_inputs, d_slots, d_weights = step_backward(
                inputs,
                slots,
                sums,
                total,
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
