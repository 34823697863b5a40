"""The gradient of one step, as a sequence of launches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.attend import attend
from fastslots_kernels.fused.attend_backward import attend_backward
from fastslots_kernels.fused.call import Call, few_splits
from fastslots_kernels.fused.products import fold_backward, weight_gradients
from fastslots_kernels.fused.update import Keys, make_keys, new_keys, recompute_gates
from fastslots_kernels.fused.update_backward import keys_backward, new_vectors, update_backward
from fastslots_kernels.weights import SlotAttentionWeights


class StepGradients(NamedTuple):
    """Gradients of one step."""

    inputs: Tensor | None  # None if not needed
    slots: Tensor
    matrices: dict[str, Tensor]  # by name
    vectors: Tensor  # all of them, in the order of the fields of `SlotAttentionWeights`


def run_backward(
    call: Call,
    weights: SlotAttentionWeights,
    slots: Tensor,
    sums: Tensor | None,
    gates: Tensor | None,
    d_new: Tensor | None,
    d_attn: Tensor | None,
    *,
    need_inputs: bool,
) -> StepGradients:
    """Gradients of one step.

    Args:
        call: As in the forward.
        weights: The weights that were folded.
        slots: The slots that entered the step, ``[B, K, D]``.
        sums: ``[B, 1, sums_size]`` of the forward, or None: they are computed again.
        gates: ``[4, B K, D]`` of the forward, or None: they are computed again.
        d_new: Of the new slots, ``[B, K, D]``, or None for zero.
        d_attn: Of the attention, ``[B, N, K]``, or None for zero.
        need_inputs: Whether the inputs need a gradient.
    """
    sizes, old = call.sizes, call.rows(slots)
    plain = old.new_empty(sizes.rows, sizes.width)
    bias = old.new_empty(sizes.rows, sizes.num_heads, 1)
    keys = Keys(call.w.key_weight.new_empty(plain.shape), bias)
    if sums is None:
        splits = call.new_sums(call.attend_plan(None))
        attend(call, make_keys(call, old, new_keys(call)), splits)
        sums = splits.sum(1, keepdim=True)
    if gates is None:
        gates = recompute_gates(call, sums, old)
    vectors = new_vectors(call)
    d_new = torch.zeros_like(old) if d_new is None else call.rows(d_new)
    update = update_backward(call, d_new, old, sums, gates, vectors, keys, plain)

    d_inputs = torch.empty_like(call.inputs) if need_inputs else None
    d_keys = call.new_sums(call.backward_plan)
    attend_backward(call, keys, sums, update.d_sums, d_attn, d_inputs, d_keys)
    d_plain = keys_backward(call, few_splits(d_keys, sizes), plain, old, update.d_slots, vectors)
    d_slots = update.d_slots.view(slots.shape).to(slots.dtype)
    products = weight_gradients(call, update, d_plain, vectors, weights.dtype)
    matrices = fold_backward(
        weights,
        sizes.num_heads,
        products.key_weight,
        products.value_weight,
        call.tile,
        call.precision,
    )
    for name in ("gru_weight_hh", "mlp_0_weight", "mlp_2_weight"):
        matrices[name] = getattr(products, name)
    return StepGradients(d_inputs, d_slots, matrices, products.vectors)
