"""The slot update's backward: launchers, and the gradients of all vectors of the weights at once.

Gradients of matrices are left to `products`; both factors of each are returned.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.update import Keys
from fastslots_kernels.fused.update_backward_kernels import (
    _gates_backward_kernel,
    _gru_backward_kernel,
    _keys_backward_kernel,
    _mlp_backward_kernel,
    _prepare_backward_kernel,
)

_BLOCK_ROWS = 16


class UpdateGradients(NamedTuple):
    """What `update_backward` leaves: sums and slots in the accumulator's dtype, the rest in the tiles'.

    Gradients of the matrices: ``values``: ``d_input_gatesᵀ ū``, ``hidden``: ``d_hidden_gatesᵀ slots``,
    ``mlp_0``: ``d_hiddenᵀ normed``, ``mlp_2``: ``d_newᵀ hidden``, ``keys``: ``normed_slotsᵀ d_plain`` with
    what `keys_backward` returns.
    """

    d_sums: Tensor  # [B, 1, sums_size], laid out like the sums; its padding is not written
    d_slots: Tensor  # [R, D]: past the gates; `keys_backward` adds the rest
    d_input_gates: Tensor  # [R, 3 D]
    d_hidden_gates: Tensor  # [R, 3 D]
    averaged: Tensor  # [R, H C]: ū
    hidden: Tensor  # [R, M], after the ReLU
    d_hidden: Tensor  # [R, M], before it
    normed: Tensor  # [R, D]: what enters the MLP
    d_new: Tensor  # [R, D]
    slots: Tensor  # [R, D]
    normed_slots: Tensor  # [R, D], affine included


def new_vectors(w: FoldedWeights, sizes: Sizes) -> Tensor:
    """Memory for the gradients of all vectors, one row per tile of slots, ``[tiles, total]``.

    In the order of the fields of `SlotAttentionWeights`, with those of the inputs' LayerNorm for every head.
    The functions below fill all of it between them; `products.weight_gradients` adds it up.
    """
    return w.scale.new_empty(-(-sizes.rows // _BLOCK_ROWS), sum(_widths(sizes).values()))


def update_backward(
    d_new: Tensor,
    slots: Tensor,
    sums: Tensor,
    gates: Tensor,
    w: FoldedWeights,
    sizes: Sizes,
    norm_eps: tuple[float, float, float],
    precision: str,
    vectors: Tensor,
    keys: Keys,
    plain: Tensor,
) -> UpdateGradients:
    """From the gradient of the new slots to those of the sums and, in part, of the old slots.

    Beside that, as it waits for nothing, makes the keys that are differentiated next.

    Four launches: rows in the tile dtype; the MLP's hidden units, spread over programs; whole rows back to
    the gates; the gates' products.

    Args:
        d_new: ``[R, D]``, accumulator's dtype.
        slots: The slots that entered the step, ``[R, D]``, accumulator's dtype.
        sums: ``[B, 1, sums_size]``, accumulator's dtype.
        gates: Of the forward, ``[4, R, D]``.
        w: Weights of the step.
        sizes: Of the call.
        norm_eps: Of the LayerNorms of the inputs, of the slots, before the MLP.
        precision: ``"ieee"`` or ``"tf32"``, for products in float32.
        vectors: Of `new_vectors`; all columns but those of ``norm_slots`` are filled.
        keys: Receives those of the slots, as of `make_keys`.
        plain: Receives their `m` before `w.scale`, ``[R, H C]``.
    """
    out = _empty_update_gradients(w, sizes)
    if sizes.rows == 0:
        return out
    tiles, first = vectors.shape[0], _first_columns(sizes)
    d, m = sizes.slot_size, sizes.mlp_size
    shared = {"D": d, "VECTORS": vectors.shape[1], "BLOCK_ROWS": _BLOCK_ROWS}
    widths: dict[str, Any] = {
        "C": sizes.input_size,
        "H": sizes.num_heads,
        "BLOCK_C": padded(sizes.input_size),
        "BLOCK_D": padded(d),
        "PRECISION": precision,
    }
    launch(
        _prepare_backward_kernel,
        (tiles,),
        d_new,
        slots,
        gates,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
        w.norm_slots_weight,
        w.norm_slots_bias,
        out.d_new,
        out.slots,
        out.normed,
        out.normed_slots,
        vectors,
        sizes.rows,
        **shared,
        FIRST=first["mlp_2_bias"],
        NORM_SLOTS_EPS=norm_eps[1],
        NORM_MLP_EPS=norm_eps[2],
        BLOCK_D=padded(d),
        num_warps=4,
    )
    # Large tiles read less, of a small MLP there would be few.
    scale = 2 if m > 256 else 1
    block_rows, block_m = scale * _BLOCK_ROWS, min(scale * 32, padded(m))
    launch(
        _mlp_backward_kernel,
        (-(-sizes.rows // block_rows) * -(-m // block_m),),
        out.normed,
        out.d_new,
        w.mlp_0,
        w.mlp_0_bias,
        w.mlp_2,
        out.hidden,
        out.d_hidden,
        vectors,
        sizes.rows,
        tiles,
        D=d,
        M=m,
        VECTORS=vectors.shape[1],
        FIRST=first["mlp_0_bias"],
        PRECISION=precision,
        TILE_ROWS=_BLOCK_ROWS,
        BLOCK_ROWS=block_rows,
        BLOCK_M=block_m,
        **_chunks(d, 2 * block_m, w, precision),
        num_warps=4,
    )
    columns = max(sizes.input_size, d)
    launch(
        _gru_backward_kernel,
        (tiles * (sizes.num_heads + 1),),
        d_new,
        slots,
        gates,
        out.d_hidden,
        w.mlp_0,
        w.norm_mlp_weight,
        out.normed_slots,
        w.keys,
        w.scale,
        w.shift,
        torch.empty_like(d_new),
        out.d_input_gates,
        out.d_hidden_gates,
        out.d_slots,
        vectors,
        *keys,
        plain,
        sizes.rows,
        **shared,
        **widths,
        M=m,
        FIRST=first["norm_mlp_weight"],
        NORM_MLP_EPS=norm_eps[2],
        **_chunks(max(d, m), columns, w, precision),
        num_warps=8,  # of 4, each would need more registers than there are
    )
    launch(
        _gates_backward_kernel,
        (tiles * (sizes.num_heads + 1),),
        out.d_input_gates,
        out.d_hidden_gates,
        w.values,
        w.hidden,
        sums,
        w.scale,
        w.shift,
        out.d_slots,
        out.d_sums,
        out.averaged,
        vectors,
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        **shared,
        **widths,
        **_chunks(3 * d, columns, w, precision),
        num_warps=_num_warps(w),
    )
    return out


def keys_backward(
    d_keys: Tensor,
    plain: Tensor,
    slots: Tensor,
    d_slots: Tensor,
    w: FoldedWeights,
    sizes: Sizes,
    norm_slots_eps: float,
    precision: str,
    vectors: Tensor,
) -> Tensor:
    """From the gradients of the keys to the rest of that of the old slots, added to `d_slots`.

    Args:
        d_keys: Of ``m`` and ``c``, laid out like the sums, ``[B, S, sums_size]``; their sum over S counts.
        plain: Keys without the inputs' affine, ``[R, H C]``, accumulator's dtype.
        slots: As in `update_backward`.
        d_slots: Of `update_backward`.
        w: Weights of the step.
        sizes: Of the call.
        norm_slots_eps: Added to the variance of the slots.
        precision: As in `update_backward`.
        vectors: Filled by `update_backward`; receives the rest.

    Returns:
        The gradient of the product with ``keys``, ``[R, H C]``, in the tiles' dtype.
    """
    d_plain = w.keys.new_empty(sizes.rows, sizes.width)
    if sizes.rows == 0:
        return d_plain
    launch(
        _keys_backward_kernel,
        (vectors.shape[0],),
        d_keys,
        plain,
        slots,
        w.keys,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        d_plain,
        d_slots,
        vectors,
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=d_keys.shape[1],
        C=sizes.input_size,
        D=sizes.slot_size,
        H=sizes.num_heads,
        VECTORS=vectors.shape[1],
        FIRST=_first_columns(sizes)["norm_slots_weight"],
        EPS=norm_slots_eps,
        PRECISION=precision,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_C=padded(sizes.input_size),
        BLOCK_D=padded(sizes.slot_size),
        **_chunks(sizes.width, sizes.slot_size, w, precision),
        num_warps=_num_warps(w),
    )
    return d_plain


def _widths(sizes: Sizes) -> dict[str, int]:
    """Columns of `vectors` by field of `SlotAttentionWeights`, in order."""
    d = sizes.slot_size
    return {
        "norm_inputs_weight": sizes.width,
        "norm_inputs_bias": sizes.width,
        "norm_slots_weight": d,
        "norm_slots_bias": d,
        "norm_mlp_weight": d,
        "norm_mlp_bias": d,
        "gru_bias_ih": 3 * d,
        "gru_bias_hh": 3 * d,
        "mlp_0_bias": sizes.mlp_size,
        "mlp_2_bias": d,
    }


def _first_columns(sizes: Sizes) -> dict[str, int]:
    """First column of every field in `vectors`."""
    widths = _widths(sizes)
    return dict(zip(widths, accumulate(widths.values(), initial=0), strict=False))


def _empty_update_gradients(w: FoldedWeights, sizes: Sizes) -> UpdateGradients:
    rows, d, m = sizes.rows, sizes.slot_size, sizes.mlp_size
    widths = 3 * d, 3 * d, sizes.width, m, m, d, d, d, d
    return UpdateGradients(
        w.scale.new_empty(sizes.batch, 1, sizes.sums_size),
        w.scale.new_empty(rows, d),
        *(w.values.new_empty(rows, width) for width in widths),
    )


def _num_warps(w: FoldedWeights) -> int:
    """Of programs that work on whole rows: of 16-bit tiles 4 are faster than 8, by 5 to 25 % on an H100.

    Wider entries need the registers of more.
    """
    return 4 if w.values.itemsize == 2 else 8


def _chunks(size: int, columns: int, w: FoldedWeights, precision: str) -> dict[str, int]:
    """How much of a sum over `size` is done at a time, and how many such chunks of a weight are on their way.

    All of a small weight at once, and up to 96 KiB of a large one, since little else hides the latency; two
    programs still fit a multiprocessor, one of them of the next kernel. Chunks of wide entries are small:
    without matrix units, a product holds them in registers.
    """
    row_bytes = padded(columns) * w.values.itemsize
    kib = 32 if w.values.itemsize == 2 or precision == "tf32" else 16
    chunk = min(64, max(16, kib * 1024 // row_bytes), padded(size))
    most = 4 if row_bytes <= 1024 else 3
    return {"BLOCK_K": chunk, "STAGES": min(most, 1 + -(-size // chunk))}
