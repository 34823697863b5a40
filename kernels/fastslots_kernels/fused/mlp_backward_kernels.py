"""Kernels of the slot update's backward: what its products need, and the MLP's hidden units.

A program has a tile of rows, the slots of the whole batch. Rows past the end repeat the last one with a
gradient of 0, so that they add nothing to sums over rows: the gradients of vectors, stored per tile.

Both operands of a product come from memory in the tile dtype, with as many chunks on their way as fit: a
multiprocessor has few of these programs, so that nothing else hides the latency. Elementwise work is done
outside of loops, in tiles read once.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import add_dot, layer_norm
from fastslots_kernels.fused.tiles import load_row, rows_repeated


@triton.jit
def _prepare_backward_kernel(
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, candidate, from_hidden
    norm_mlp_weight_ptr,  # [D]
    norm_mlp_bias_ptr,  # [D]
    norm_slots_weight_ptr,  # [D]
    norm_slots_bias_ptr,  # [D]
    d_new_tile_ptr,  # out [R, D]
    slots_tile_ptr,  # out [R, D]
    normed_ptr,  # out [R, D]: LNₘ(s')
    normed_slots_ptr,  # out [R, D]: s̃
    vectors_ptr,  # out [tiles, VECTORS]
    num_rows,
    D: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_MLP_2_BIAS: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """``s̃ = LNₛ(s)`` and ``LNₘ(s')`` with ``s' = (1 - keep) ∘ candidate + keep ∘ s``; ``db₂ = Σ ds''``.

    And ``ds''`` and ``s`` in the tile dtype, for products. One program: one tile of rows.
    """
    tile: tl.constexpr = normed_ptr.dtype.element_ty
    pid = tl.program_id(0)
    rows, valid_row = rows_repeated(pid, num_rows, BLOCK_ROWS)
    d = tl.arange(0, PADDED_D)
    valid_d = d < D
    there = valid_d[None, :]
    valid = valid_row[:, None] & there
    at = rows[:, None] * D + d[None, :]
    gate = num_rows.to(tl.int64) * D
    d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
    slots = tl.load(slots_ptr + at, mask=there, other=0.0)
    keep = tl.load(gates_ptr + gate + at, mask=there, other=0.0)
    candidate = tl.load(gates_ptr + 2 * gate + at, mask=there, other=0.0)
    mlp_weight = load_row(norm_mlp_weight_ptr + d, valid_d)
    mlp_bias = load_row(norm_mlp_bias_ptr + d, valid_d)
    slots_weight = load_row(norm_slots_weight_ptr + d, valid_d)
    slots_bias = load_row(norm_slots_bias_ptr + d, valid_d)

    tl.store(d_new_tile_ptr + at, d_new.to(tile), mask=valid)
    tl.store(slots_tile_ptr + at, slots.to(tile), mask=valid)
    normed, _ = layer_norm((1 - keep) * candidate + keep * slots, there, D, NORM_MLP_EPS)
    tl.store(normed_ptr + at, (normed * mlp_weight + mlp_bias).to(tile), mask=valid)
    normed, _ = layer_norm(slots, there, D, NORM_SLOTS_EPS)
    tl.store(normed_slots_ptr + at, (normed * slots_weight + slots_bias).to(tile), mask=valid)
    vectors_ptr += pid.to(tl.int64) * VECTORS + AT_MLP_2_BIAS
    tl.store(vectors_ptr + d, tl.sum(d_new, 0), mask=valid_d)


@triton.jit
def _mlp_backward_kernel(
    normed_ptr,  # [R, D]: LNₘ(s')
    d_new_ptr,  # [R, D], tile dtype
    mlp_0_ptr,  # [M, D]: W₀
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]: W₂
    hidden_ptr,  # out [R, M]
    d_hidden_ptr,  # out [R, M]
    vectors_ptr,  # out [tiles, VECTORS]
    num_rows,
    num_tiles,
    D: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_MLP_0_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # some tiles
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``h = LNₘ(s') W₀ᵀ + b₀`` again; ``dh = ds'' W₂`` where ``h > 0``, else 0; ``db₀ = Σ dh``.

    One program: some tiles of rows by some hidden units.
    """
    tile: tl.constexpr = mlp_0_ptr.dtype.element_ty
    acc: tl.constexpr = mlp_0_bias_ptr.dtype.element_ty
    blocks: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    pid = tl.program_id(0) // blocks
    rows, valid_row = rows_repeated(pid, num_rows, BLOCK_ROWS)
    unit = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid_unit = unit < M
    bias = tl.load(mlp_0_bias_ptr + unit, mask=valid_unit, other=0.0)
    hidden = tl.zeros([BLOCK_ROWS, BLOCK_M], acc)
    d_hidden = tl.zeros([BLOCK_ROWS, BLOCK_M], acc)
    for first in tl.range(0, D, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        at = rows[:, None] * D + i[None, :]
        valid = valid_row[:, None] & (i < D)[None, :]
        valid_weight = (i < D)[:, None] & valid_unit[None, :]
        normed = tl.load(normed_ptr + at, mask=valid, other=0.0)
        mlp_0 = tl.load(mlp_0_ptr + unit[None, :] * D + i[:, None], mask=valid_weight, other=0.0)
        hidden = add_dot(hidden, normed, mlp_0, PRECISION)
        d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
        mlp_2 = tl.load(mlp_2_ptr + i[:, None] * M + unit[None, :], mask=valid_weight, other=0.0)
        d_hidden = add_dot(d_hidden, d_new, mlp_2, PRECISION)
    hidden += bias[None, :]
    d_hidden = tl.where(hidden > 0, d_hidden, 0.0)
    at = rows[:, None] * M + unit[None, :]
    valid = valid_row[:, None] & valid_unit[None, :]
    tl.store(hidden_ptr + at, tl.maximum(hidden, 0.0).to(tile), mask=valid)
    tl.store(d_hidden_ptr + at, d_hidden.to(tile), mask=valid)
    tiles: tl.constexpr = BLOCK_ROWS // TILE_ROWS
    for part in tl.static_range(tiles):
        of_part = tl.arange(0, BLOCK_ROWS) // TILE_ROWS == part
        d_bias = tl.sum(tl.where(of_part[:, None], d_hidden, 0.0), 0)
        at = vectors_ptr + (pid * tiles + part).to(tl.int64) * VECTORS + AT_MLP_0_BIAS + unit
        tl.store(at, d_bias, mask=valid_unit & (pid * tiles + part < num_tiles))
