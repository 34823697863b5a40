"""From the sums over the inputs to the next slots and their keys (kernels/README.md#without-projections)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import UpdatePlan, update_plan
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.update_kernels import (
    _gru_kernel,
    _keys_kernel,
    _mlp_kernel,
    _update_kernel,
)

_BLOCK_ROWS = 16  # the fewest rows that matrix units take
_SMALL_WEIGHTS = 128 * 1024  # bytes that one program reads in about the time of a second launch


class Keys(NamedTuple):
    """What the logits need of the slots: ``L = x̃ mᵀ + c``."""

    m: Tensor  # [R, H C], tile dtype
    c: Tensor  # [R, H]


def make_keys(
    slots: Tensor,
    keys: Keys,
    w: FoldedWeights,
    sizes: Sizes,
    norm_slots_eps: float,
    precision: str,
    plain: Tensor | None = None,
) -> None:
    """Writes the keys of slots ``[R, D]`` to `keys`, and to `plain`, ``[R, H C]``, `m` before `w.scale`."""
    if sizes.rows == 0:
        return
    launch(
        _keys_kernel,
        (_row_tiles(sizes),),
        slots,
        *keys,
        _or_unused(plain, slots),
        w.keys,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        w.norm_slots_bias,
        sizes.rows,
        **_constants(sizes, precision),
        **_row_blocks(sizes, update_plan(sizes, w.keys.dtype)),
        STORE_PLAIN=plain is not None,
        NORM_EPS=norm_slots_eps,
    )


def update_slots(
    sums: Tensor,
    slots: Tensor,
    new: Tensor,
    scratch: Tensor,
    keys: Keys | None,
    w: FoldedWeights,
    sizes: Sizes,
    norm_eps: tuple[float, float, float],
    precision: str,
    *,
    residual: Tensor | None = None,
    stop: Tensor | None = None,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
) -> None:
    """Writes the next slots to `new`, and their keys to `keys`.

    Small weights take one launch, in which a program reads all of them for its rows. Others take two, of
    which the first spreads the GRU's weights over programs, or three, of which the second does so with a
    large MLP's.

    Args:
        sums: Of all splits, ``[B, S, sums_size]``, accumulator dtype like all but `keys.m`.
        slots: The present slots, ``[R, D]``.
        new: ``[R, D]``; may be `slots`.
        scratch: ``[R, D]``, memory of its own.
        keys: Those of the new slots, or None if nobody needs them.
        w: The weights.
        sizes: Of the call.
        norm_eps: Of the LayerNorms of the inputs, of the slots, before the MLP.
        precision: Of the products: ``"ieee"`` or ``"tf32"``.
        residual: Receives ``Σ (new - slots)²`` and ``Σ new²`` of every row, ``[R, 2]``.
        stop: int32 flag on the device: unless it is 0, nothing is written.
        reduced: Receives the sums over all splits, ``[B, sums_size]``, with zeros for padding.
        gates: Receives those of the GRU, ``[4, R, D]``: reset, keep, new, and what the reset gate multiplies.
    """
    if sizes.rows == 0:
        return
    plan = update_plan(sizes, w.keys.dtype)
    one_launch = _weight_bytes(w) <= _SMALL_WEIGHTS
    if not one_launch:
        _launch_gru(
            sums, slots, scratch, w, sizes, precision, stop=stop, reduced=reduced, gates=gates
        )
    num_parts, parts = 0 if one_launch else plan.mlp_parts, None
    if num_parts:
        parts = scratch.new_empty(num_parts, *scratch.shape)
        launch(
            _mlp_kernel,
            (_row_tiles(sizes) * num_parts,),
            scratch,
            *_mlp_weights(w),
            parts,
            _or_unused(stop, slots),
            sizes.rows,
            D=sizes.slot_size,
            M=sizes.mlp_size,
            NORM_EPS=norm_eps[2],
            HAS_STOP=stop is not None,
            PARTS=num_parts,
            BLOCK_ROWS=_BLOCK_ROWS,
            **_row_blocks(sizes, plan),
            PRECISION=precision,
        )
    launch(
        _update_kernel,
        (_row_tiles(sizes),),
        sums,
        slots,
        scratch,
        _or_unused(reduced, slots),
        _or_unused(gates, slots),
        *_gru_weights(w),
        new,
        _or_unused(residual, slots),
        *_mlp_weights(w),
        _or_unused(parts, slots),
        *(keys or (slots, slots)),
        w.keys,
        w.norm_slots_weight,
        w.norm_slots_bias,
        _or_unused(stop, slots),
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=sums.shape[1],
        **_constants(sizes, precision),
        **_gru_blocks(plan),
        **_row_blocks(sizes, plan),
        M=sizes.mlp_size,
        NORM_SLOTS_EPS=norm_eps[1],
        NORM_MLP_EPS=norm_eps[2],
        RUN_GRU=one_launch,
        HAS_STOP=stop is not None,
        STORE_SUMS=reduced is not None,
        STORE_GATES=gates is not None,
        RESIDUAL=residual is not None,
        MAKE_KEYS=keys is not None,
        PARTS=num_parts,
    )


def recompute_gates(
    sums: Tensor, slots: Tensor, w: FoldedWeights, sizes: Sizes, precision: str
) -> Tensor:
    """The gates of `update_slots` again, of sums ``[B, 1, sums_size]`` and slots ``[R, D]``."""
    gates = slots.new_empty(4, *slots.shape)
    if sizes.rows > 0:
        _launch_gru(sums, slots, torch.empty_like(slots), w, sizes, precision, gates=gates)
    return gates


def _launch_gru(
    sums: Tensor,
    slots: Tensor,
    output: Tensor,
    w: FoldedWeights,
    sizes: Sizes,
    precision: str,
    *,
    reduced: Tensor | None = None,
    gates: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    plan = update_plan(sizes, w.values.dtype)
    launch(
        _gru_kernel,
        (_row_tiles(sizes) * triton.cdiv(sizes.slot_size, plan.gru_columns),),
        sums,
        slots,
        output,
        _or_unused(reduced, slots),
        _or_unused(gates, slots),
        *_gru_weights(w),
        _or_unused(stop, slots),
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=sums.shape[1],
        **_constants(sizes, precision),
        **_gru_blocks(plan),
        HAS_STOP=stop is not None,
        STORE_SUMS=reduced is not None,
        STORE_GATES=gates is not None,
        STAGES=plan.gru_stages,
        num_warps=plan.gru_warps,
    )


def _gru_weights(w: FoldedWeights) -> tuple[Tensor, ...]:
    return w.values, w.hidden, w.gru_bias_ih, w.gru_bias_hh, w.scale, w.shift


def _mlp_weights(w: FoldedWeights) -> tuple[Tensor, ...]:
    mlp = w.mlp_0, w.mlp_0_bias, w.mlp_2, w.mlp_2_bias
    return w.norm_mlp_weight, w.norm_mlp_bias, *mlp


def _weight_bytes(w: FoldedWeights) -> int:
    matrices = w.keys, w.values, w.hidden, w.mlp_0, w.mlp_2
    return sum(matrix.numel() * matrix.element_size() for matrix in matrices)


def _or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer for an argument that the kernel does not read when `tensor` is None."""
    return unused if tensor is None else tensor


def _row_tiles(sizes: Sizes) -> int:
    return -(-sizes.rows // _BLOCK_ROWS)


def _constants(sizes: Sizes, precision: str) -> dict[str, Any]:
    """What every kernel of this file takes."""
    return {
        "C": sizes.input_size,
        "D": sizes.slot_size,
        "H": sizes.num_heads,
        "BLOCK_ROWS": _BLOCK_ROWS,
        "PRECISION": precision,
    }


def _gru_blocks(plan: UpdatePlan) -> dict[str, int]:
    return {"BLOCK_D": plan.gru_columns, "GRU_CHUNK": plan.gru_chunk}


def _row_blocks(sizes: Sizes, plan: UpdatePlan) -> dict[str, int]:
    return {
        "PADDED_D": padded(sizes.slot_size),
        "ROW_CHUNK": plan.row_chunk,
        "STAGES": plan.row_stages,
        "num_warps": plan.row_warps,
    }
