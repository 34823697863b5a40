"""Iterations and one step, as sequences of launches. No autograd here: see `ops`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.attend import attend
from fastslots_kernels.fused.call import Call, few_splits
from fastslots_kernels.fused.plans import stores_normed
from fastslots_kernels.fused.reductions import converged
from fastslots_kernels.fused.update import Scratch, make_keys, new_keys, new_residual, update_slots


class _Watch(NamedTuple):
    """How the device decides to stop."""

    stop: Tensor  # int32: whether every image has converged
    residual: Tensor  # as of `new_residual`
    tolerance: float


def run_iterations(
    call: Call, slots: Tensor, num_iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """At least one iteration, without a graph.

    With a tolerance the device itself decides when to stop: launches after that do nothing.

    Args:
        call: What the steps share.
        slots: ``[B, K, D]``, any float dtype.
        num_iterations: At most so many.
        tolerance: As in `fastslots_kernels.slot_attention`.

    Returns:
        The slots ``[B, K, D]`` in the accumulator's dtype, the iterations used, int64, and ``x̃`` for
        further steps, ``[B, N, C]`` in the tile dtype, or None where the inputs are read as they are.
    """
    sizes, inputs = call.sizes, call.inputs
    normed = None
    if stores_normed(call.tile, inputs.dtype):
        normed = inputs.new_empty(inputs.shape, dtype=call.tile)
    if sizes.batch == 0:  # all of no images have converged after one iteration
        taken = num_iterations if tolerance is None else 1
        used = torch.full((), taken, dtype=torch.int64, device=inputs.device)
        return slots.new_empty(slots.shape, dtype=call.accumulator), used, normed
    initial = call.rows(slots)
    state, device = torch.empty_like(initial), inputs.device
    used = torch.full((), 0 if tolerance else num_iterations, dtype=torch.int64, device=device)
    watch = None
    if tolerance is not None:
        stop = torch.zeros((), dtype=torch.int32, device=device)
        watch = _Watch(stop, new_residual(call), tolerance)
    stop_flag = None if watch is None else watch.stop

    scratch = Scratch.new(call)
    keys = make_keys(call, initial, new_keys(call), rounded=scratch.rounded)
    for iteration in range(num_iterations):
        if iteration == 0:
            sums = call.new_sums(call.attend_plan(None))
            attend(call, keys, sums, store=normed, stop=stop_flag)
            if normed is not None:
                later_sums = call.new_sums(call.attend_plan(normed))
        else:
            sums = sums if normed is None else later_sums
            attend(call, keys, sums, normed=normed, stop=stop_flag)
        update_slots(
            call,
            few_splits(sums, sizes),
            initial if iteration == 0 else state,
            state,
            scratch,
            residual=None if watch is None else watch.residual,
            stop=stop_flag,
        )
        if iteration < num_iterations - 1:
            make_keys(call, state, keys, rounded=scratch.rounded, stop=stop_flag)
        if watch is not None:
            converged(watch.residual, watch.stop, used, sizes, watch.tolerance)
    return state.view(slots.shape), used, normed


def run_step(
    call: Call, slots: Tensor, normed: Tensor | None, attn_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """One step.

    Args:
        call: What the steps share.
        slots: ``[B, K, D]``, any float dtype.
        normed: Of `run_iterations`, or None.
        attn_dtype: Dtype of the attention, or None for none.

    Returns:
        The new slots ``[B, K, D]`` in the accumulator's dtype, the softmax over the slots summed over heads,
        ``[B, N, K]``, or None, the sums ``[B, 1, sums_size]`` and the GRU's gates ``[4, B K, D]``.
    """
    sizes = call.sizes
    old = call.rows(slots)
    scratch, sums = Scratch.new(call), call.new_sums(call.attend_plan(normed))
    keys = make_keys(call, old, new_keys(call), rounded=scratch.rounded)
    attn = None
    if attn_dtype is not None:
        shape = (sizes.batch, sizes.num_inputs, sizes.virtual)
        attn = call.inputs.new_empty(shape, dtype=attn_dtype)
    attend(call, keys, sums, normed=normed, attn=attn)
    # Of the result's shape: what leaves a node of the graph as a view could not be changed in place.
    new, reduced = old.new_empty(slots.shape), call.new_sums()
    gates = old.new_empty(4, *old.shape)
    few = few_splits(sums, sizes)
    update_slots(call, few, old, new.view(old.shape), scratch, reduced=reduced, gates=gates)
    if attn is not None and sizes.num_heads > 1:
        attn = attn.unflatten(2, (sizes.num_slots, sizes.num_heads)).sum(3)
    return new, attn, reduced, gates
