"""The gradient of one step, as a sequence of launches and matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.attend_backward import attend_backward
from fastslots_kernels.fused.folded import fold_backward
from fastslots_kernels.fused.forward import Call, few_splits, run_attend
from fastslots_kernels.fused.update import recompute_gates
from fastslots_kernels.fused.update_backward import (
    keys_backward,
    new_vectors,
    no_update_gradients,
    sum_vectors,
    update_backward,
)
from fastslots_kernels.weights import SlotAttentionWeights


class StepGradients(NamedTuple):
    """Gradients of one step: of the inputs (None if not needed), of the slots, of the weights by name."""

    inputs: Tensor | None
    slots: Tensor
    weights: dict[str, Tensor]


def run_backward(
    call: Call,
    weights: SlotAttentionWeights,
    slots: Tensor,
    sums: Tensor | None,
    d_new: Tensor | None,
    d_attn: Tensor | None,
    *,
    need_inputs: bool,
) -> StepGradients:
    """Gradients of one step, everything but its arguments computed again.

    Args:
        call: As in the forward.
        weights: The weights that were folded.
        slots: The slots that entered the step, ``[B, K, D]``.
        sums: ``[B, 1, sums_size]`` of the forward, or None: they are computed again too.
        d_new: Of the new slots, ``[B, K, D]``, or None for zero.
        d_attn: Of the attention, ``[B, N, K]``, or None for zero.
        need_inputs: Whether the inputs need a gradient.
    """
    sizes, w, precision = call.sizes, call.w, call.precision
    acc, tile = call.accumulator, call.w.keys.dtype
    old = call.rows(slots)
    keys = call.make_keys(old)
    if sums is None:
        splits = call.new_sums(call.attend_plan(None))
        run_attend(call, keys, splits)
        sums = splits.sum(1, keepdim=True)
    gates = recompute_gates(sums, old, w, sizes, precision)
    vectors = new_vectors(w, sizes)
    if d_new is None:
        update = no_update_gradients(w, sizes, vectors)
        d_new = torch.zeros_like(old)
    else:
        d_new = call.rows(d_new)
        update = update_backward(
            d_new, old, sums, gates, w, sizes, call.norm_eps[2], precision, vectors
        )

    d_inputs = torch.empty_like(call.inputs) if need_inputs else None
    plan = call.backward_plan()
    d_keys = call.new_sums(plan)
    attend_backward(
        call.inputs,
        call.mask,
        *keys,
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
    by_keys = keys_backward(
        few_splits(d_keys), old, update, w, sizes, call.norm_eps[1], precision, vectors
    )

    by_name = sum_vectors(vectors, sizes)
    folded = fold_backward(
        weights.to(acc),
        sizes.num_heads,
        _product(by_keys.normed, by_keys.d_m, acc),
        by_name.pop("keys_bias"),
        _product(update.d_input_gates, gates.averaged, acc),
    )._asdict()
    by_name["norm_inputs_weight"] = folded.pop("norm_inputs_weight") + by_name.pop("scale")
    by_name["norm_inputs_bias"] = folded.pop("norm_inputs_bias") + by_name.pop("shift")
    by_name |= folded
    by_name["gru_weight_hh"] = _product(update.d_hidden_gates, old.to(tile), acc)
    by_name["mlp_0_weight"] = _product(update.d_hidden, update.normed, acc)
    by_name["mlp_2_weight"] = _product(d_new.to(tile), update.hidden, acc)
    d_slots = update.d_slots.view(slots.shape).to(slots.dtype)
    return StepGradients(d_inputs, d_slots, by_name)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``leftᵀ right``, summed and returned in `dtype`."""
    if left.dtype == dtype:
        return left.T @ right
    if left.is_cuda:
        return torch.mm(left.T, right, out_dtype=dtype)
    return left.T.to(dtype) @ right.to(dtype)
