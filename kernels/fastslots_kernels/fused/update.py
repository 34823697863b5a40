"""From the sums over the inputs to the next slots and their keys (kernels/README.md#without-projections)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import UpdatePlan
from fastslots_kernels.fused.sizes import MEAN_ROWS, ceil_div, padded
from fastslots_kernels.fused.update_kernels import (
    _average_kernel,
    _gru_kernel,
    _hidden_kernel,
    _keys_kernel,
    _new_kernel,
)


class Keys(NamedTuple):
    """What the logits need of the slots: ``L = x̃ mᵀ + c``."""

    m: Tensor  # [R, H C], tile dtype
    bias: Tensor  # c: [R, H, parts], what each block of columns adds


class Scratch(NamedTuple):
    """What kernels of an update leave for one another."""

    averaged: Tensor  # ū, [R, H C], tile dtype
    rounded: Tensor  # the slots that entered, [R, D], tile dtype
    output: Tensor  # of the GRU, [R, D], accumulator dtype
    hidden: Tensor  # of the MLP, [R, M], tile dtype

    @classmethod
    def new(cls, call: Call) -> Scratch:
        """Memory for the updates of a call."""
        w, rows, d = call.w, call.sizes.rows, call.sizes.slot_size
        return cls(
            w.value_weight.new_empty(rows, call.sizes.width),
            w.value_weight.new_empty(rows, d),
            w.scale.new_empty(rows, d),
            w.value_weight.new_empty(rows, call.sizes.mlp_size),
        )


def new_keys(call: Call) -> Keys:
    """Memory for what `make_keys` writes."""
    w, sizes = call.w, call.sizes
    parts = call.update_plan.column_blocks(sizes.input_size)
    return Keys(
        w.key_weight.new_empty(sizes.rows, sizes.width),
        w.scale.new_empty(sizes.rows, sizes.num_heads, parts),
    )


def make_keys(
    call: Call,
    slots: Tensor,
    keys: Keys,
    *,
    rounded: Tensor | None = None,
    stop: Tensor | None = None,
) -> Keys:
    """Writes the keys of slots ``[R, D]`` to `keys`, and returns these.

    Args:
        call: What the steps share.
        slots: Accumulator dtype, like all but `keys.m` and `rounded`.
        keys: As of `new_keys`.
        rounded: Receives the slots in the tile dtype, ``[R, D]``.
        stop: int32 flag on the device: unless it is 0, nothing is written.
    """
    sizes, w, plan = call.sizes, call.w, call.update_plan
    if sizes.rows == 0:
        return keys
    launch(
        _keys_kernel,
        (plan.row_tiles(sizes.rows) * sizes.num_heads * keys.bias.shape[2],),
        slots,
        *keys,
        rounded,
        w.key_weight,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        w.norm_slots_bias,
        stop,
        sizes.rows,
        C=sizes.input_size,
        D=sizes.slot_size,
        H=sizes.num_heads,
        NORM_SLOTS_EPS=call.norm_eps[1],
        BLOCK_C=plan.columns,
        PADDED_D=padded(sizes.slot_size),
        **_shared(call, plan),
    )
    return keys


def update_slots(
    call: Call,
    sums: Tensor,
    slots: Tensor,
    new: Tensor,
    scratch: Scratch,
    *,
    residual: Tensor | None = None,
    stop: Tensor | None = None,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
) -> None:
    """Writes the next slots to `new`.

    Args:
        call: What the steps share.
        sums: Of all splits, ``[B, S, sums_size]``, accumulator dtype.
        slots: The present slots, ``[R, D]``, accumulator dtype.
        new: ``[R, D]``; may be `slots`.
        scratch: Whose `rounded` hold the present slots.
        residual: As of `new_residual`; receives ``Σ (new - slots)²`` and ``Σ new²`` of blocks of columns.
        stop: int32 flag on the device: unless it is 0, nothing is written.
        reduced: Receives the sums over all splits, ``[B, sums_size]``, with zeros for padding.
        gates: Receives those of the GRU, ``[4, R, D]``: reset, keep, candidate, and what reset multiplies.
    """
    sizes, w, plan = call.sizes, call.w, call.update_plan
    if sizes.rows == 0:
        return
    _launch_gru(call, sums, slots, scratch, stop=stop, reduced=reduced, gates=gates)
    d, m = sizes.slot_size, sizes.mlp_size
    launch(
        _hidden_kernel,
        (plan.row_tiles(sizes.rows) * plan.column_blocks(m),),
        scratch.output,
        scratch.hidden,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
        w.mlp_0,
        w.mlp_0_bias,
        stop,
        sizes.rows,
        D=d,
        M=m,
        NORM_MLP_EPS=call.norm_eps[2],
        BLOCK_M=plan.columns,
        PADDED_D=padded(d),
        **_shared(call, plan),
    )
    launch(
        _new_kernel,
        (plan.row_tiles(sizes.rows) * plan.column_blocks(d),),
        scratch.hidden,
        scratch.output,
        slots,
        new,
        residual,
        w.mlp_2,
        w.mlp_2_bias,
        stop,
        sizes.rows,
        D=d,
        M=m,
        BLOCK_D=plan.columns,
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        **_shared(call, plan),
    )


def new_residual(call: Call) -> Tensor:
    """Memory for the residual of `update_slots`, ``[R, blocks of columns, 2]``."""
    blocks = call.update_plan.column_blocks(call.sizes.slot_size)
    return call.w.scale.new_empty(call.sizes.rows, blocks, 2)


def recompute_gates(call: Call, sums: Tensor, slots: Tensor) -> Tensor:
    """The gates of `update_slots` again, of sums ``[B, 1, sums_size]`` and slots ``[R, D]``."""
    gates = slots.new_empty(4, *slots.shape)
    if call.sizes.rows > 0:
        scratch = Scratch.new(call)._replace(rounded=slots.to(call.tile))
        _launch_gru(call, sums, slots, scratch, gates=gates)
    return gates


def _launch_gru(
    call: Call,
    sums: Tensor,
    slots: Tensor,
    scratch: Scratch,
    *,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Writes means and output of the GRU to `scratch`."""
    sizes, w, plan = call.sizes, call.w, call.update_plan
    launch(
        _average_kernel,
        (ceil_div(sizes.rows, MEAN_ROWS) * sizes.num_heads,),
        sums,
        scratch.averaged,
        reduced,
        w.scale,
        w.shift,
        stop,
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=sums.shape[1],
        C=sizes.input_size,
        H=sizes.num_heads,
        BLOCK_ROWS=MEAN_ROWS,
        PADDED_C=padded(sizes.input_size),
        num_warps=4,
    )
    launch(
        _gru_kernel,
        (plan.row_tiles(sizes.rows) * plan.column_blocks(sizes.slot_size),),
        scratch.averaged,
        scratch.rounded,
        slots,
        scratch.output,
        gates,
        w.value_weight,
        w.hidden_weight,
        w.gru_bias_ih,
        w.gru_bias_hh,
        stop,
        sizes.rows,
        W=sizes.width,
        D=sizes.slot_size,
        BLOCK_D=plan.columns,
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        **_shared(call, plan),
    )


def _shared(call: Call, plan: UpdatePlan) -> dict[str, Any]:
    """What all kernels with products take."""
    return {"BLOCK_ROWS": plan.rows, "PRECISION": call.precision, "num_warps": plan.warps}
