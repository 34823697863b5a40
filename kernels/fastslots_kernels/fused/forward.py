"""Iterations and one step, as sequences of launches. No autograd here: see `ops`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.attend import attend
from fastslots_kernels.fused.folded import FoldedWeights, float32_precision
from fastslots_kernels.fused.plans import (
    Plan,
    attend_plan,
    backward_plan,
    num_splits,
    stores_normed,
)
from fastslots_kernels.fused.reductions import converged, reduce_splits
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.fused.update import (
    Keys,
    Scratch,
    make_keys,
    new_keys,
    new_residual,
    update_slots,
)

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

    @property
    def accumulator(self) -> torch.dtype:
        """Dtype of all that is no operand of a matrix product."""
        return self.w.scale.dtype

    @property
    def precision(self) -> str:
        """Of products of float32 tiles, as PyTorch is told to make its own."""
        return float32_precision()

    def new_sums(self, plan: Plan | None = None) -> Tensor:
        """Memory for the sums of every split of a plan, or of all inputs, ``[B, S, sums_size]``."""
        sizes, device = self.sizes, self.inputs.device
        splits = 1
        if plan is not None:
            splits = num_splits(sizes.batch, sizes.num_inputs, plan, _num_processors(device))
        shape = (sizes.batch, splits, sizes.sums_size)
        return self.inputs.new_empty(shape, dtype=self.accumulator)

    def attend_plan(self, normed: Tensor | None) -> Plan:
        """How the inputs, or what was stored of them, are attended to."""
        read = self.inputs if normed is None else normed
        return attend_plan(self.sizes, self.w.keys.dtype, read.dtype, normed=normed is not None)

    def backward_plan(self) -> Plan:
        """How the inputs are passed over in the backward."""
        groups = has_warp_groups(self.inputs.device)
        return backward_plan(self.sizes, self.w.keys.dtype, warp_groups=groups)

    def rows(self, slots: Tensor) -> Tensor:
        """Slots, or their gradient, ``[B, K, D]`` as ``[B K, D]``, contiguous, in the accumulator's dtype."""
        shape = (self.sizes.rows, self.sizes.slot_size)
        return slots.to(self.accumulator).reshape(shape).contiguous()

    def make_keys(
        self,
        slots: Tensor,
        keys: Keys | None = None,
        *,
        rounded: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Keys:
        """The keys of slots ``[B K, D]``; arguments as in `update.make_keys`."""
        keys = new_keys(self.w, self.sizes) if keys is None else keys
        make_keys(
            slots,
            keys,
            self.w,
            self.sizes,
            self.norm_eps[1],
            self.precision,
            rounded=rounded,
            stop=stop,
        )
        return keys


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
    normed, tile = None, call.w.keys.dtype
    if stores_normed(tile, inputs.dtype):
        normed = inputs.new_empty(inputs.shape, dtype=tile)
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
        watch = _Watch(stop, new_residual(call.w, sizes), tolerance)
    stop_flag = None if watch is None else watch.stop

    scratch = Scratch.new(call.w, sizes)
    keys = call.make_keys(initial, rounded=scratch.rounded)
    for iteration in range(num_iterations):
        if iteration == 0:
            sums = call.new_sums(call.attend_plan(None))
            run_attend(call, keys, sums, store=normed, stop=stop_flag)
            if normed is not None:
                later_sums = call.new_sums(call.attend_plan(normed))
        else:
            sums = sums if normed is None else later_sums
            run_attend(call, keys, sums, normed=normed, stop=stop_flag)
        update_slots(
            few_splits(sums, sizes),
            initial if iteration == 0 else state,
            state,
            scratch,
            call.w,
            sizes,
            call.norm_eps[2],
            call.precision,
            residual=None if watch is None else watch.residual,
            stop=stop_flag,
        )
        if iteration < num_iterations - 1:
            call.make_keys(state, keys, rounded=scratch.rounded, stop=stop_flag)
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
    scratch, sums = Scratch.new(call.w, sizes), call.new_sums(call.attend_plan(normed))
    keys = call.make_keys(old, rounded=scratch.rounded)
    attn = None
    if attn_dtype is not None:
        shape = (sizes.batch, sizes.num_inputs, sizes.virtual)
        attn = call.inputs.new_empty(shape, dtype=attn_dtype)
    run_attend(call, keys, sums, normed=normed, attn=attn)
    # Of the result's shape: what leaves a node of the graph as a view could not be changed in place.
    new, reduced = old.new_empty(slots.shape), call.new_sums()
    gates = old.new_empty(4, *old.shape)
    update_slots(
        few_splits(sums, sizes),
        old,
        new.view(old.shape),
        scratch,
        call.w,
        sizes,
        call.norm_eps[2],
        call.precision,
        reduced=reduced,
        gates=gates,
    )
    if attn is not None and sizes.num_heads > 1:
        attn = attn.unflatten(2, (sizes.num_slots, sizes.num_heads)).sum(3)
    return new, attn, reduced, gates


def run_attend(
    call: Call,
    keys: Keys,
    sums: Tensor,
    *,
    normed: Tensor | None = None,
    store: Tensor | None = None,
    attn: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Attends to the inputs, or to ``x̃`` of them if it is given; writes ``x̃`` to `store`.

    `sums` are of the plan for what is read; other arguments as in `attend`.
    """
    attend(
        call.inputs if normed is None else normed,
        call.mask,
        *keys,
        sums,
        call.sizes,
        call.attend_plan(normed),
        epsilon=call.epsilon,
        norm_eps=call.norm_eps[0] if normed is None else None,
        precision=call.precision,
        attn=attn,
        normed=store,
        stop=stop,
    )


def few_splits(sums: Tensor, sizes: Sizes) -> Tensor:
    """Sums of so few splits that whoever reads them may add them up."""
    return sums if sums.shape[1] <= _MOST_SPLITS_READ else reduce_splits(sums, sizes)


@lru_cache
def _num_processors(device: torch.device) -> int:
    """Multiprocessors of a device. Elsewhere a number that gives several splits."""
    if device.type == "cuda":
        count: int = torch.cuda.get_device_properties(device).multi_processor_count
        return count
    return 8


@lru_cache
def has_warp_groups(device: torch.device) -> bool:
    """Whether a device multiplies by warp groups, as GPUs of compute capability 9.0 do and no later ones."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
