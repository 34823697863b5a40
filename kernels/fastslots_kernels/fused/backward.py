"""The gradient of one step, as a sequence of launches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.attend_backward import attend_backward
from fastslots_kernels.fused.forward import Call, few_splits, run_attend
from fastslots_kernels.fused.products import fold_backward, weight_gradients
from fastslots_kernels.fused.update import Keys, recompute_gates
from fastslots_kernels.fused.update_backward import (
    keys_backward,
    new_vectors,
    update_backward,
)
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
    sizes, w, precision = call.sizes, call.w, call.precision
    old = call.rows(slots)
    plain = old.new_empty(sizes.rows, sizes.width)
    keys = Keys(call.w.keys.new_empty(plain.shape), old.new_empty(sizes.rows, sizes.num_heads, 1))
    if sums is None:
        splits = call.new_sums(call.attend_plan(None))
        run_attend(call, call.make_keys(old), splits)
        sums = splits.sum(1, keepdim=True)
    if gates is None:
        gates = recompute_gates(sums, old, w, sizes, precision)
    vectors = new_vectors(w, sizes)
    d_new = torch.zeros_like(old) if d_new is None else call.rows(d_new)
    update = update_backward(
        d_new, old, sums, gates, w, sizes, call.norm_eps, precision, vectors, keys, plain
    )

    d_inputs = torch.empty_like(call.inputs) if need_inputs else None
    plan = call.backward_plan()
    d_keys = call.new_sums(plan)
    attend_backward(
        call.inputs,
        call.mask,
        *keys,
        sums,
        update.d_sums,
        d_attn,
        d_inputs,
        d_keys,
        sizes,
        plan,
        epsilon=call.epsilon,
        norm_eps=call.norm_eps[0],
        precision=precision,
    )
    d_plain = keys_backward(
        few_splits(d_keys, sizes),
        plain,
        old,
        update.d_slots,
        w,
        sizes,
        call.norm_eps[1],
        precision,
        vectors,
    )
    d_slots = update.d_slots.view(slots.shape).to(slots.dtype)
    products = weight_gradients(update, d_plain, vectors, sizes, weights.dtype, precision)
    matrices = fold_backward(
        weights, sizes.num_heads, products.keys, products.values, d_plain.dtype, precision
    )
    for name in ("gru_weight_hh", "mlp_0_weight", "mlp_2_weight"):
        matrices[name] = getattr(products, name)
    return StepGradients(d_inputs, d_slots, matrices, products.vectors)
