"""The slot update's backward: launchers, and the gradients of all vectors of the weights at once.

Gradients of matrices are left to `products`; both factors of each are returned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.gates_backward_kernels import (
    _gates_backward_kernel,
    _gru_backward_kernel,
)
from fastslots_kernels.fused.keys_backward_kernels import _keys_backward_kernel
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.mlp_backward_kernels import (
    _mlp_backward_kernel,
    _prepare_backward_kernel,
)
from fastslots_kernels.fused.sizes import BLOCK_ROWS, ceil_div, padded
from fastslots_kernels.fused.update import Keys


class UpdateGradients(NamedTuple):
    """What `update_backward` leaves: sums and slots in the accumulator's dtype, the rest in the tiles'.

    They are the factors of the gradients of matrices that `products.weight_gradients` makes.
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


def new_vectors(call: Call) -> Tensor:
    """Memory for the gradients of all vectors, one row per tile of slots, ``[tiles, VECTORS]``.

    Columns are those of `Sizes.vectors`. The functions below fill all of it between them;
    `products.weight_gradients` adds it up.
    """
    tiles = ceil_div(call.sizes.rows, BLOCK_ROWS)
    return call.w.scale.new_empty(tiles, call.sizes.vectors.end)


def update_backward(
    call: Call,
    d_new: Tensor,
    slots: Tensor,
    sums: Tensor,
    gates: Tensor,
    vectors: Tensor,
    keys: Keys,
    plain: Tensor,
) -> UpdateGradients:
    """From the gradient of the new slots to those of the sums and, in part, of the old slots.

    Beside that, as it waits for nothing, makes the keys that are differentiated next.

    Four launches: rows in the tile dtype; the MLP's hidden units, spread over programs; whole rows back to
    the gates; the gates' products.

    Args:
        call: As in the forward.
        d_new: ``[R, D]``, accumulator's dtype.
        slots: The slots that entered the step, ``[R, D]``, accumulator's dtype.
        sums: ``[B, 1, sums_size]``, accumulator's dtype.
        gates: Of the forward, ``[4, R, D]``.
        vectors: Of `new_vectors`; all columns but those of ``norm_slots`` are filled.
        keys: Receives those of the slots, as of `make_keys`.
        plain: Receives their `m` before `w.scale`, ``[R, H C]``.
    """
    out = _empty_update_gradients(call)
    if call.sizes.rows:
        _launch_prepare(call, d_new, slots, gates, vectors, out)
        _launch_mlp(call, vectors, out)
        _launch_gru(call, d_new, slots, gates, vectors, keys, plain, out)
        _launch_gates(call, sums, vectors, out)
    return out


def _launch_prepare(
    call: Call, d_new: Tensor, slots: Tensor, gates: Tensor, vectors: Tensor, out: UpdateGradients
) -> None:
    w, sizes = call.w, call.sizes
    launch(
        _prepare_backward_kernel,
        (vectors.shape[0],),
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
        D=sizes.slot_size,
        **_columns(call, "mlp_2_bias"),
        NORM_SLOTS_EPS=call.norm_eps[1],
        NORM_MLP_EPS=call.norm_eps[2],
        BLOCK_ROWS=BLOCK_ROWS,
        PADDED_D=padded(sizes.slot_size),
        num_warps=4,
    )


def _launch_mlp(call: Call, vectors: Tensor, out: UpdateGradients) -> None:
    w, sizes, m = call.w, call.sizes, call.sizes.mlp_size
    # Large tiles read less, of a small MLP there would be few.
    scale = 2 if m > 256 else 1
    block_rows, block_m = scale * BLOCK_ROWS, min(scale * 32, padded(m))
    launch(
        _mlp_backward_kernel,
        (ceil_div(sizes.rows, block_rows) * ceil_div(m, block_m),),
        out.normed,
        out.d_new,
        w.mlp_0,
        w.mlp_0_bias,
        w.mlp_2,
        out.hidden,
        out.d_hidden,
        vectors,
        sizes.rows,
        vectors.shape[0],
        D=sizes.slot_size,
        M=m,
        **_columns(call, "mlp_0_bias"),
        PRECISION=call.precision,
        TILE_ROWS=BLOCK_ROWS,
        BLOCK_ROWS=block_rows,
        BLOCK_M=block_m,
        **_chunks(call, sizes.slot_size, 2 * block_m),
        num_warps=4,
    )


def _launch_gru(
    call: Call,
    d_new: Tensor,
    slots: Tensor,
    gates: Tensor,
    vectors: Tensor,
    keys: Keys,
    plain: Tensor,
    out: UpdateGradients,
) -> None:
    w, sizes = call.w, call.sizes
    d, m = sizes.slot_size, sizes.mlp_size
    launch(
        _gru_backward_kernel,
        (vectors.shape[0] * (sizes.num_heads + 1),),
        d_new,
        slots,
        gates,
        out.d_hidden,
        w.mlp_0,
        w.norm_mlp_weight,
        out.normed_slots,
        w.key_weight,
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
        **_shared(call),
        M=m,
        **_columns(call, "norm_mlp_weight", "norm_mlp_bias", "gru_bias_ih", "gru_bias_hh"),
        NORM_MLP_EPS=call.norm_eps[2],
        **_chunks(call, max(d, m), max(sizes.input_size, d)),
        num_warps=8,  # of 4, each would need more registers than there are
    )


def _launch_gates(call: Call, sums: Tensor, vectors: Tensor, out: UpdateGradients) -> None:
    w, sizes, d = call.w, call.sizes, call.sizes.slot_size
    launch(
        _gates_backward_kernel,
        (vectors.shape[0] * (sizes.num_heads + 1),),
        out.d_input_gates,
        out.d_hidden_gates,
        w.value_weight,
        w.hidden_weight,
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
        **_shared(call),
        **_columns(call, "norm_inputs_weight", "norm_inputs_bias"),
        **_chunks(call, 3 * d, max(sizes.input_size, d)),
        num_warps=_num_warps(call),
    )


def keys_backward(
    call: Call, d_keys: Tensor, plain: Tensor, slots: Tensor, d_slots: Tensor, vectors: Tensor
) -> Tensor:
    """From the gradients of the keys to the rest of that of the old slots, added to `d_slots`.

    Args:
        call: As in the forward.
        d_keys: Of ``m`` and the bias, laid out like the sums, ``[B, S, sums_size]``; their sum over S counts.
        plain: Keys without the inputs' affine, ``[R, H C]``, accumulator's dtype.
        slots: As in `update_backward`.
        d_slots: Of `update_backward`.
        vectors: Filled by `update_backward`; receives the rest.

    Returns:
        The gradient of ``g = s̃ G``, ``[R, H C]``, in the tiles' dtype.
    """
    w, sizes = call.w, call.sizes
    d_plain = w.key_weight.new_empty(sizes.rows, sizes.width)
    if sizes.rows == 0:
        return d_plain
    affines = "norm_inputs_weight", "norm_inputs_bias", "norm_slots_weight", "norm_slots_bias"
    launch(
        _keys_backward_kernel,
        (vectors.shape[0],),
        d_keys,
        plain,
        slots,
        w.key_weight,
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
        **_shared(call),
        **_columns(call, *affines),
        NORM_SLOTS_EPS=call.norm_eps[1],
        **_chunks(call, sizes.width, sizes.slot_size),
        num_warps=_num_warps(call),
    )
    return d_plain


def _shared(call: Call) -> dict[str, Any]:
    """What all kernels take that work on whole rows of inputs' and slots' width."""
    sizes = call.sizes
    return {
        "C": sizes.input_size,
        "D": sizes.slot_size,
        "H": sizes.num_heads,
        "PRECISION": call.precision,
        "BLOCK_ROWS": BLOCK_ROWS,
        "PADDED_C": padded(sizes.input_size),
        "PADDED_D": padded(sizes.slot_size),
    }


def _columns(call: Call, *names: str) -> dict[str, int]:
    """Where in a row of `vectors` a kernel writes, and how long the row is."""
    columns = call.sizes.vectors._asdict()
    return {"VECTORS": columns["end"]} | {f"AT_{name.upper()}": columns[name] for name in names}


def _empty_update_gradients(call: Call) -> UpdateGradients:
    w, sizes = call.w, call.sizes
    rows, d, m = sizes.rows, sizes.slot_size, sizes.mlp_size
    widths = 3 * d, 3 * d, sizes.width, m, m, d, d, d, d
    return UpdateGradients(
        w.scale.new_empty(sizes.batch, 1, sizes.sums_size),
        w.scale.new_empty(rows, d),
        *(w.value_weight.new_empty(rows, width) for width in widths),
    )


def _num_warps(call: Call) -> int:
    """Of programs that work on whole rows: of 16-bit tiles 4 are faster than 8, by 5 to 25 % on an H100.

    Wider entries need the registers of more.
    """
    return 4 if call.tile.itemsize == 2 else 8


def _chunks(call: Call, size: int, columns: int) -> dict[str, int]:
    """How much of a sum over `size` is done at a time, and how many such chunks of a weight are on their way.

    All of a small weight at once, and up to 96 KiB of a large one, since little else hides the latency; two
    programs still fit a multiprocessor, one of them of the next kernel. Chunks of wide entries are small:
    without matrix units, a product holds them in registers.
    """
    row_bytes = padded(columns) * call.tile.itemsize
    kib = 32 if call.tile.itemsize == 2 or call.precision == "tf32" else 16
    chunk = min(64, max(16, kib * 1024 // row_bytes), padded(size))
    most = 4 if row_bytes <= 1024 else 3
    return {"CHUNK": chunk, "STAGES": min(most, 1 + ceil_div(size, chunk))}
