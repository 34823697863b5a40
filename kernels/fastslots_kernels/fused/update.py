"""From the sums over the inputs to the next slots and their keys (kernels/README.md#without-projections)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import UpdatePlan, update_plan
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.update_kernels import (
    _average_kernel,
    _gru_kernel,
    _hidden_kernel,
    _keys_kernel,
    _new_kernel,
)

_AVERAGED_ROWS = 4  # of a program


class Keys(NamedTuple):
    """What the logits need of the slots: ``L = x̃ mᵀ + c``."""

    m: Tensor  # [R, H C], tile dtype
    c: Tensor  # [R, H, P]: what each of P blocks of columns adds


class Scratch(NamedTuple):
    """What kernels of an update leave for one another."""

    averaged: Tensor  # ū, [R, H C], tile dtype
    rounded: Tensor  # the slots that entered, [R, D], tile dtype
    output: Tensor  # of the GRU, [R, D], accumulator dtype
    hidden: Tensor  # of the MLP, [R, M], tile dtype

    @classmethod
    def new(cls, w: FoldedWeights, sizes: Sizes) -> Scratch:
        """Memory for updates of these sizes."""
        rows, d = sizes.rows, sizes.slot_size
        return cls(
            w.values.new_empty(rows, sizes.width),
            w.values.new_empty(rows, d),
            w.scale.new_empty(rows, d),
            w.values.new_empty(rows, sizes.mlp_size),
        )


def make_keys(
    slots: Tensor,
    keys: Keys,
    w: FoldedWeights,
    sizes: Sizes,
    norm_slots_eps: float,
    precision: str,
    *,
    rounded: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Writes the keys of slots ``[R, D]`` to `keys`.

    Args:
        slots: Accumulator dtype, like all but `keys.m` and `rounded`.
        keys: As of `new_keys`.
        w: The weights.
        sizes: Of the call.
        norm_slots_eps: Of the LayerNorm of the slots.
        precision: Of the products: ``"ieee"`` or ``"tf32"``.
        rounded: Receives the slots in the tile dtype, ``[R, D]``.
        stop: int32 flag on the device: unless it is 0, nothing is written.
    """
    if sizes.rows == 0:
        return
    plan = update_plan(sizes, w.keys.dtype)
    blocks = plan.row_tiles(sizes.rows) * sizes.num_heads * keys.c.shape[2]
    launch(
        _keys_kernel,
        (blocks,),
        slots,
        *keys,
        _or_unused(rounded, keys.m),
        w.keys,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        w.norm_slots_bias,
        _or_unused(stop, slots),
        sizes.rows,
        C=sizes.input_size,
        D=sizes.slot_size,
        H=sizes.num_heads,
        EPS=norm_slots_eps,
        HAS_STOP=stop is not None,
        STORE_ROUNDED=rounded is not None,
        BLOCK_C=plan.columns,
        PADDED_D=padded(sizes.slot_size),
        **_constants(plan, precision),
    )


def new_keys(w: FoldedWeights, sizes: Sizes) -> Keys:
    """Memory for what `make_keys` writes."""
    plan = update_plan(sizes, w.keys.dtype)
    parts = plan.column_blocks(sizes.input_size)
    return Keys(
        w.keys.new_empty(sizes.rows, sizes.width),
        w.scale.new_empty(sizes.rows, sizes.num_heads, parts),
    )


def update_slots(
    sums: Tensor,
    slots: Tensor,
    new: Tensor,
    scratch: Scratch,
    w: FoldedWeights,
    sizes: Sizes,
    norm_mlp_eps: float,
    precision: str,
    *,
    residual: Tensor | None = None,
    stop: Tensor | None = None,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
) -> None:
    """Writes the next slots to `new`.

    Args:
        sums: Of all splits, ``[B, S, sums_size]``, accumulator dtype.
        slots: The present slots, ``[R, D]``, accumulator dtype.
        new: ``[R, D]``; may be `slots`.
        scratch: Whose `rounded` hold the present slots.
        w: The weights.
        sizes: Of the call.
        norm_mlp_eps: Of the LayerNorm before the MLP.
        precision: Of the products: ``"ieee"`` or ``"tf32"``.
        residual: As of `new_residual`; receives ``Σ (new - slots)²`` and ``Σ new²`` of blocks of columns.
        stop: int32 flag on the device: unless it is 0, nothing is written.
        reduced: Receives the sums over all splits, ``[B, sums_size]``, with zeros for padding.
        gates: Receives those of the GRU, ``[4, R, D]``: reset, keep, new, and what the reset gate multiplies.
    """
    if sizes.rows == 0:
        return
    _launch_gru(sums, slots, scratch, w, sizes, precision, stop=stop, reduced=reduced, gates=gates)
    plan, m, d = update_plan(sizes, w.keys.dtype), sizes.mlp_size, sizes.slot_size
    constants = {"D": d, "M": m, "HAS_STOP": stop is not None, **_constants(plan, precision)}
    launch(
        _hidden_kernel,
        (plan.row_tiles(sizes.rows) * plan.column_blocks(m),),
        scratch.output,
        scratch.hidden,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
        w.mlp_0,
        w.mlp_0_bias,
        _or_unused(stop, slots),
        sizes.rows,
        EPS=norm_mlp_eps,
        BLOCK_M=plan.columns,
        PADDED_D=padded(d),
        **constants,
    )
    launch(
        _new_kernel,
        (plan.row_tiles(sizes.rows) * plan.column_blocks(d),),
        scratch.hidden,
        scratch.output,
        slots,
        new,
        _or_unused(residual, slots),
        w.mlp_2,
        w.mlp_2_bias,
        _or_unused(stop, slots),
        sizes.rows,
        RESIDUAL=residual is not None,
        BLOCK_D=plan.columns,
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        **constants,
    )


def new_residual(w: FoldedWeights, sizes: Sizes) -> Tensor:
    """Memory for the residual of `update_slots`, ``[R, blocks of columns, 2]``."""
    blocks = update_plan(sizes, w.keys.dtype).column_blocks(sizes.slot_size)
    return w.scale.new_empty(sizes.rows, blocks, 2)


def recompute_gates(
    sums: Tensor, slots: Tensor, w: FoldedWeights, sizes: Sizes, precision: str
) -> Tensor:
    """The gates of `update_slots` again, of sums ``[B, 1, sums_size]`` and slots ``[R, D]``."""
    gates = slots.new_empty(4, *slots.shape)
    if sizes.rows > 0:
        scratch = Scratch.new(w, sizes)._replace(rounded=slots.to(w.values.dtype))
        _launch_gru(sums, slots, scratch, w, sizes, precision, gates=gates)
    return gates


def _launch_gru(
    sums: Tensor,
    slots: Tensor,
    scratch: Scratch,
    w: FoldedWeights,
    sizes: Sizes,
    precision: str,
    *,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Writes means and output of the GRU to `scratch`."""
    plan = update_plan(sizes, w.values.dtype)
    launch(
        _average_kernel,
        (-(-sizes.rows // _AVERAGED_ROWS) * sizes.num_heads,),
        sums,
        scratch.averaged,
        _or_unused(reduced, slots),
        w.scale,
        w.shift,
        _or_unused(stop, slots),
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=sums.shape[1],
        C=sizes.input_size,
        H=sizes.num_heads,
        HAS_STOP=stop is not None,
        STORE_SUMS=reduced is not None,
        BLOCK_ROWS=_AVERAGED_ROWS,
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
        _or_unused(gates, slots),
        w.values,
        w.hidden,
        w.gru_bias_ih,
        w.gru_bias_hh,
        _or_unused(stop, slots),
        sizes.rows,
        W=sizes.width,
        D=sizes.slot_size,
        HAS_STOP=stop is not None,
        STORE_GATES=gates is not None,
        BLOCK_D=plan.columns,
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        **_constants(plan, precision),
    )


def _or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer for an argument that the kernel does not read when `tensor` is None."""
    return unused if tensor is None else tensor


def _constants(plan: UpdatePlan, precision: str) -> dict[str, Any]:
    """What all kernels with products take."""
    return {"BLOCK_ROWS": plan.rows, "PRECISION": precision, "num_warps": plan.warps}
