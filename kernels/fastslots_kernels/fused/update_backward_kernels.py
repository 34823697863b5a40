"""Kernels of the slot update's backward: MLP and GRU, gates' products, keys (see kernels/README.md).

A program has a tile of rows, the slots of the whole batch. Rows past the end repeat the last one with a
gradient of 0, so that they add nothing to sums over rows: the gradients of vectors, stored per tile.

Both operands of a product come from memory in the tile dtype, with as many chunks on their way as fit: a
multiprocessor has few of these programs, so that nothing else hides the latency. Elementwise work is done
outside of loops, in tiles read once.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import (
    add_dot,
    divide,
    layer_norm,
    layer_norm_backward,
)
from fastslots_kernels.fused.update_kernels import sum_splits


@triton.jit
def tile_rows(index, num_rows, BLOCK_ROWS: tl.constexpr):
    """Rows of a tile, int64, the last one repeated, and which of them exist."""
    rows = index * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return tl.minimum(rows, num_rows - 1).to(tl.int64), rows < num_rows


@triton.jit
def row_product(
    rows,  # [BLOCK_ROWS], int64
    inside,
    a_ptr,  # [R, K]
    weight_ptrs,  # [BLOCK_N]: where columns of the weight start
    valid_n,
    K: tl.constexpr,
    K_STRIDE: tl.constexpr,  # of the weight
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Some rows, 0 past the end, times some columns of a weight."""
    total = tl.zeros([rows.shape[0], weight_ptrs.shape[0]], ACC)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = first + tl.arange(0, BLOCK_K)
        a_at = a_ptr + (rows * K)[:, None] + k[None, :]
        a = tl.load(a_at, mask=inside[:, None] & (k < K)[None, :], other=0.0)
        weight_at = weight_ptrs[None, :] + k[:, None] * K_STRIDE
        weight = tl.load(weight_at, mask=(k < K)[:, None] & valid_n[None, :], other=0.0)
        total = add_dot(total, a, weight, PRECISION)
    return total


@triton.jit
def _prepare_backward_kernel(
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, new, from_hidden
    norm_mlp_weight_ptr,  # [D]
    norm_mlp_bias_ptr,  # [D]
    norm_slots_weight_ptr,  # [D]
    norm_slots_bias_ptr,  # [D]
    d_new_tile_ptr,  # out [R, D]
    slots_tile_ptr,  # out [R, D]
    normed_ptr,  # out [R, D]: what enters the MLP
    normed_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS], from column FIRST on
    num_rows,  # R
    D: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of what the products need of the slots and their gradient. Vectors: mlp_2_bias."""
    tile: tl.constexpr = normed_ptr.dtype.element_ty
    pid = tl.program_id(0)
    rows, inside = tile_rows(pid, num_rows, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_D)
    columns = d < D
    wide = columns[None, :]
    valid = inside[:, None] & wide
    at = rows[:, None] * D + d[None, :]
    size = num_rows.to(tl.int64) * D
    d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
    slots = tl.load(slots_ptr + at, mask=wide, other=0.0)
    keep = tl.load(gates_ptr + size + at, mask=wide, other=0.0)
    new = tl.load(gates_ptr + 2 * size + at, mask=wide, other=0.0)
    mlp_weight = tl.load(norm_mlp_weight_ptr + d, mask=columns, other=0.0)[None, :]
    mlp_bias = tl.load(norm_mlp_bias_ptr + d, mask=columns, other=0.0)[None, :]
    slots_weight = tl.load(norm_slots_weight_ptr + d, mask=columns, other=0.0)[None, :]
    slots_bias = tl.load(norm_slots_bias_ptr + d, mask=columns, other=0.0)[None, :]

    tl.store(d_new_tile_ptr + at, d_new.to(tile), mask=valid)
    tl.store(slots_tile_ptr + at, slots.to(tile), mask=valid)
    normed, _ = layer_norm((1 - keep) * new + keep * slots, wide, D, NORM_MLP_EPS)
    tl.store(normed_ptr + at, (normed * mlp_weight + mlp_bias).to(tile), mask=valid)
    normed, _ = layer_norm(slots, wide, D, NORM_SLOTS_EPS)
    tl.store(normed_slots_ptr + at, (normed * slots_weight + slots_bias).to(tile), mask=valid)
    vectors_ptr += pid.to(tl.int64) * VECTORS + FIRST
    tl.store(vectors_ptr + d, tl.sum(d_new, 0), mask=columns)


@triton.jit
def _mlp_backward_kernel(
    normed_ptr,  # [R, D]
    d_new_ptr,  # [R, D], tile dtype
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    hidden_ptr,  # out [R, M]
    d_hidden_ptr,  # out [R, M]
    vectors_ptr,  # out [tiles, VECTORS], from column FIRST on
    num_rows,  # R
    num_tiles,
    D: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # some tiles
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Some rows and hidden units: those units again, and their gradient. Vectors: mlp_0_bias."""
    tile: tl.constexpr = mlp_0_ptr.dtype.element_ty
    acc: tl.constexpr = mlp_0_bias_ptr.dtype.element_ty
    blocks: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    pid = tl.program_id(0) // blocks
    rows, inside = tile_rows(pid, num_rows, BLOCK_ROWS)
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid_m = m < M
    bias = tl.load(mlp_0_bias_ptr + m, mask=valid_m, other=0.0)
    hidden = tl.zeros([BLOCK_ROWS, BLOCK_M], acc)
    d_hidden = tl.zeros([BLOCK_ROWS, BLOCK_M], acc)
    for first in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        d = first + tl.arange(0, BLOCK_K)
        at = rows[:, None] * D + d[None, :]
        valid = inside[:, None] & (d < D)[None, :]
        valid_weight = (d < D)[:, None] & valid_m[None, :]
        normed = tl.load(normed_ptr + at, mask=valid, other=0.0)
        mlp_0 = tl.load(mlp_0_ptr + m[None, :] * D + d[:, None], mask=valid_weight, other=0.0)
        hidden = add_dot(hidden, normed, mlp_0, PRECISION)
        d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
        mlp_2 = tl.load(mlp_2_ptr + d[:, None] * M + m[None, :], mask=valid_weight, other=0.0)
        d_hidden = add_dot(d_hidden, d_new, mlp_2, PRECISION)
    hidden += bias[None, :]
    d_hidden = tl.where(hidden > 0, d_hidden, 0.0)
    at = rows[:, None] * M + m[None, :]
    valid = inside[:, None] & valid_m[None, :]
    tl.store(hidden_ptr + at, tl.maximum(hidden, 0.0).to(tile), mask=valid)
    tl.store(d_hidden_ptr + at, d_hidden.to(tile), mask=valid)
    tiles: tl.constexpr = BLOCK_ROWS // TILE_ROWS
    for part in tl.static_range(tiles):
        of_part = tl.arange(0, BLOCK_ROWS) // TILE_ROWS == part
        d_bias = tl.sum(tl.where(of_part[:, None], d_hidden, 0.0), 0)
        at = vectors_ptr + (pid * tiles + part).to(tl.int64) * VECTORS + FIRST + m
        tl.store(at, d_bias, mask=valid_m & (pid * tiles + part < num_tiles))


@triton.jit
def gru_backward(
    tile_index,
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, new, from_hidden
    d_hidden_ptr,  # [R, M]
    mlp_0_ptr,  # [M, D]
    norm_weight_ptr,  # [D]
    d_mlp_in_ptr,  # out [R, D]
    d_input_gates_ptr,  # out [R, 3 D]
    d_hidden_gates_ptr,  # out [R, 3 D]
    d_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS], from column FIRST on
    num_rows,  # R
    D: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Back through the MLP's first layer, its LayerNorm and the gates, for one tile.

    Vectors: norm_mlp_weight, norm_mlp_bias, gru_bias_ih, gru_bias_hh.
    """
    tile: tl.constexpr = mlp_0_ptr.dtype.element_ty
    rows, inside = tile_rows(tile_index, num_rows, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_D)
    columns = d < D
    wide = columns[None, :]
    valid = inside[:, None] & wide
    at = rows[:, None] * D + d[None, :]
    size = num_rows.to(tl.int64) * D

    # On their way while the product is made.
    d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
    slots = tl.load(slots_ptr + at, mask=wide, other=0.0)
    reset = tl.load(gates_ptr + at, mask=wide, other=0.0)
    keep = tl.load(gates_ptr + size + at, mask=wide, other=0.0)
    new = tl.load(gates_ptr + 2 * size + at, mask=wide, other=0.0)
    from_hidden = tl.load(gates_ptr + 3 * size + at, mask=wide, other=0.0)
    norm_weight = tl.load(norm_weight_ptr + d, mask=columns, other=0.0)[None, :]

    d_mlp_in = row_product(
        rows, inside, d_hidden_ptr, mlp_0_ptr + d, columns,
        M, D, slots.dtype, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip
    # By way of memory to the threads that hold the rest of a row: else all of the rest would go to those of
    # the product, with a barrier or two for each tensor.
    tl.store(d_mlp_in_ptr + at, d_mlp_in, mask=valid)
    tl.debug_barrier()
    d_mlp_in = tl.load(d_mlp_in_ptr + at, mask=valid, other=0.0)
    normed, rstd = layer_norm((1 - keep) * new + keep * slots, wide, D, EPS)
    d_output = d_new + layer_norm_backward(d_mlp_in * norm_weight, normed, rstd, D)
    tl.store(d_slots_ptr + at, d_output * keep, mask=valid)
    d_gate_new = d_output * (1 - keep) * (1 - new * new)
    d_gate_keep = d_output * (slots - new) * keep * (1 - keep)
    d_gate_reset = d_gate_new * from_hidden * reset * (1 - reset)
    d_from_hidden = d_gate_new * reset

    gates_at = rows[:, None] * (3 * D) + d[None, :]
    reset_tile, keep_tile = d_gate_reset.to(tile), d_gate_keep.to(tile)
    tl.store(d_input_gates_ptr + gates_at, reset_tile, mask=valid)
    tl.store(d_input_gates_ptr + gates_at + D, keep_tile, mask=valid)
    tl.store(d_input_gates_ptr + gates_at + 2 * D, d_gate_new.to(tile), mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at, reset_tile, mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at + D, keep_tile, mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at + 2 * D, d_from_hidden.to(tile), mask=valid)

    vectors = vectors_ptr + tile_index.to(tl.int64) * VECTORS + FIRST + d
    sum_reset, sum_keep = tl.sum(d_gate_reset, 0), tl.sum(d_gate_keep, 0)
    tl.store(vectors, tl.sum(d_mlp_in * normed, 0), mask=columns)
    tl.store(vectors + D, tl.sum(d_mlp_in, 0), mask=columns)
    tl.store(vectors + 2 * D, sum_reset, mask=columns)
    tl.store(vectors + 3 * D, sum_keep, mask=columns)
    tl.store(vectors + 4 * D, tl.sum(d_gate_new, 0), mask=columns)
    tl.store(vectors + 5 * D, sum_reset, mask=columns)
    tl.store(vectors + 6 * D, sum_keep, mask=columns)
    tl.store(vectors + 7 * D, tl.sum(d_from_hidden, 0), mask=columns)


@triton.jit
def keys_again(
    tile_index,
    head,
    normed_slots_ptr,  # [R, D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    m_ptr,  # out [R, H C]
    c_ptr,  # out [R, H]
    plain_ptr,  # out [R, H C]
    num_rows,  # R
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The keys of one tile and one head."""
    rows, inside = tile_rows(tile_index, num_rows, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    columns = c < C
    scale = tl.load(scale_ptr + c, mask=columns, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=columns, other=0.0)[None, :]
    plain = row_product(
        rows, inside, normed_slots_ptr, keys_ptr + head * C + c, columns,
        D, H * C, scale.dtype, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip
    at = ((rows * H + head) * C)[:, None] + c[None, :]
    valid = inside[:, None] & columns[None, :]
    tl.store(plain_ptr + at, plain, mask=valid)
    tl.store(m_ptr + at, (plain * scale).to(m_ptr.dtype.element_ty), mask=valid)
    tl.store(c_ptr + rows * H + head, tl.sum(plain * shift, 1), mask=inside)


@triton.jit
def _gru_backward_kernel(
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]
    d_hidden_ptr,  # [R, M]
    mlp_0_ptr,  # [M, D]
    norm_mlp_weight_ptr,  # [D]
    normed_slots_ptr,  # [R, D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    d_mlp_in_ptr,  # out [R, D]
    d_input_gates_ptr,  # out [R, 3 D]
    d_hidden_gates_ptr,  # out [R, 3 D]
    d_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS], from column FIRST on
    m_ptr,  # out [R, H C]
    c_ptr,  # out [R, H]
    plain_ptr,  # out [R, H C]
    num_rows,  # R
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile: back through the gates or, as that waits for nothing, one head's keys again."""
    pid, part = tl.program_id(0) // (H + 1), tl.program_id(0) % (H + 1)
    if part == H:
        gru_backward(
            pid, d_new_ptr, slots_ptr, gates_ptr, d_hidden_ptr, mlp_0_ptr, norm_mlp_weight_ptr,
            d_mlp_in_ptr, d_input_gates_ptr, d_hidden_gates_ptr, d_slots_ptr, vectors_ptr, num_rows,
            D, M, VECTORS, FIRST, NORM_MLP_EPS, PRECISION, BLOCK_ROWS, BLOCK_D, BLOCK_K, STAGES,
        )  # fmt: skip
    else:
        keys_again(
            pid, part, normed_slots_ptr, keys_ptr, scale_ptr, shift_ptr, m_ptr, c_ptr, plain_ptr,
            num_rows, C, D, H, PRECISION, BLOCK_ROWS, BLOCK_C, BLOCK_K, STAGES,
        )  # fmt: skip


@triton.jit
def mean_backward(
    rows,
    inside,
    head,
    d_input_gates_ptr,  # [R, 3 D]
    values_ptr,  # [3 D, H C]
    sums_ptr,  # [B, 1, sums_size]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    d_sums_ptr,  # out [B, 1, sums_size], but for its padding
    averaged_ptr,  # out [R, H C]: ū
    vectors_ptr,  # out [VECTORS]
    num_slots,
    sums_size,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Back through the gates' product with the weighted mean of one head, and that mean."""
    c = tl.arange(0, BLOCK_C)
    columns = c < C
    slot = rows.to(tl.int32) % num_slots  # a division of 64 bits is long
    first = (rows.to(tl.int32) // num_slots).to(tl.int64) * sums_size
    total_at = first + num_slots * H * C + slot * H + head
    at = (first + (slot * H + head) * C)[:, None] + c[None, :]
    # On their way while the product is made.
    total = tl.load(sums_ptr + total_at)[:, None]
    sums = tl.load(sums_ptr + at, mask=columns[None, :], other=0.0)
    scale = tl.load(scale_ptr + c, mask=columns, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=columns, other=0.0)[None, :]

    d_averaged = row_product(
        rows, inside, d_input_gates_ptr, values_ptr + head * C + c, columns,
        3 * D, H * C, sums.dtype, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip
    filled = total != 0
    inverse = tl.where(filled, divide(1.0, tl.where(filled, total, 1.0)), 0.0)
    mean = sums * inverse
    d_averaged = tl.where(filled, d_averaged, 0.0)
    valid = inside[:, None] & columns[None, :]
    averaged = tl.where(filled, mean * scale + shift, 0.0).to(averaged_ptr.dtype.element_ty)
    tl.store(averaged_ptr + ((rows * H + head) * C)[:, None] + c[None, :], averaged, mask=valid)
    d_sums = d_averaged * scale * inverse
    tl.store(d_sums_ptr + at, d_sums, mask=valid)
    tl.store(d_sums_ptr + total_at, -tl.sum(d_sums * mean, 1), mask=inside)
    vectors_ptr += head * C + c
    tl.store(vectors_ptr, tl.sum(d_averaged * mean, 0), mask=columns)
    tl.store(vectors_ptr + H * C, tl.sum(d_averaged, 0), mask=columns)


@triton.jit
def _gates_backward_kernel(
    d_input_gates_ptr,  # [R, 3 D]
    d_hidden_gates_ptr,  # [R, 3 D]
    values_ptr,  # [3 D, H C]
    hidden_ptr,  # [3 D, D]
    sums_ptr,  # [B, 1, sums_size]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    d_slots_ptr,  # in and out [R, D]
    d_sums_ptr,  # out [B, 1, sums_size], but for its padding
    averaged_ptr,  # out [R, H C]
    vectors_ptr,  # out [tiles, VECTORS]
    num_rows,  # R
    num_slots,  # K
    sums_size,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    VECTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile: back through the gates' product with one head's weighted mean or with the slots.

    Vectors: norm_inputs_weight and norm_inputs_bias for every head, but for what comes through the keys.
    """
    pid, part = tl.program_id(0) // (H + 1), tl.program_id(0) % (H + 1)
    rows, inside = tile_rows(pid, num_rows, BLOCK_ROWS)
    if part == H:
        d = tl.arange(0, BLOCK_D)
        at = d_slots_ptr + rows[:, None] * D + d[None, :]
        valid = inside[:, None] & (d < D)[None, :]
        d_slots = tl.load(at, mask=valid, other=0.0)
        d_slots += row_product(
            rows, inside, d_hidden_gates_ptr, hidden_ptr + d, d < D,
            3 * D, D, d_slots.dtype, PRECISION, BLOCK_K, STAGES,
        )  # fmt: skip
        tl.store(at, d_slots, mask=valid)
    else:
        mean_backward(
            rows, inside, part, d_input_gates_ptr, values_ptr, sums_ptr, scale_ptr, shift_ptr,
            d_sums_ptr, averaged_ptr, vectors_ptr + pid.to(tl.int64) * VECTORS, num_slots,
            sums_size, C, D, H, PRECISION, BLOCK_C, BLOCK_K, STAGES,
        )  # fmt: skip


@triton.jit
def _keys_backward_kernel(
    d_keys_ptr,  # [B, S, sums_size]: dm [K, H C], then dc [K, H]; their sum over S counts
    plain_ptr,  # [R, H C]
    slots_ptr,  # [R, D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    d_plain_ptr,  # out [R, H C]
    d_slots_ptr,  # in and out [R, D]
    vectors_ptr,  # in and out [tiles, VECTORS]
    num_rows,  # R
    num_slots,  # K
    sums_size,
    NUM_SPLITS: tl.constexpr,  # S
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile back through the keys and the slots' LayerNorm.

    Vectors: adds what comes through the keys to norm_inputs_weight and norm_inputs_bias; norm_slots_weight
    and norm_slots_bias, from column FIRST on.
    """
    width: tl.constexpr = H * C
    pid = tl.program_id(0)
    rows, inside = tile_rows(pid, num_rows, BLOCK_ROWS)
    slot = rows.to(tl.int32) % num_slots  # a division of 64 bits is long
    image = (rows.to(tl.int32) // num_slots).to(tl.int64)
    vectors_ptr += pid.to(tl.int64) * VECTORS
    d = tl.arange(0, BLOCK_D)
    columns = d < D
    valid = inside[:, None] & columns[None, :]
    at = rows[:, None] * D + d[None, :]
    slots = tl.load(slots_ptr + at, mask=columns[None, :], other=0.0)
    norm_weight = tl.load(norm_weight_ptr + d, mask=columns, other=0.0)[None, :]

    c = tl.arange(0, BLOCK_C)
    valid_c = c < C
    both = inside[:, None] & valid_c[None, :]
    scale = tl.load(scale_ptr + c, mask=valid_c, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=valid_c, other=0.0)[None, :]
    d_keys_ptr += image * NUM_SPLITS * sums_size
    for head in range(H):
        plain_at = ((rows * H + head) * C)[:, None] + c[None, :]
        plain = tl.load(plain_ptr + plain_at, mask=both, other=0.0)
        vectors_at = vectors_ptr + head * C + c
        d_scale = tl.load(vectors_at, mask=valid_c, other=0.0)
        d_shift = tl.load(vectors_at + width, mask=valid_c, other=0.0)
        c_at = d_keys_ptr + num_slots * width + slot * H + head
        d_c = sum_splits(c_at, inside, NUM_SPLITS, sums_size)[:, None]
        m_at = (d_keys_ptr + (slot * H + head) * C)[:, None] + c[None, :]
        d_m = sum_splits(m_at, both, NUM_SPLITS, sums_size)
        d_plain = (d_m * scale + d_c * shift).to(d_plain_ptr.dtype.element_ty)
        tl.store(d_plain_ptr + plain_at, d_plain, mask=both)
        tl.store(vectors_at, d_scale + tl.sum(d_m * plain, 0), mask=valid_c)
        tl.store(vectors_at + width, d_shift + tl.sum(d_c * plain, 0), mask=valid_c)
    # Below, rows are read by other threads than those that wrote them.
    tl.debug_barrier()

    d_slots = tl.load(d_slots_ptr + at, mask=valid, other=0.0)
    d_normed = row_product(
        rows, inside, d_plain_ptr, keys_ptr + d * width, columns,
        width, 1, slots.dtype, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip
    normed, rstd = layer_norm(slots, columns[None, :], D, EPS)
    d_slots += layer_norm_backward(d_normed * norm_weight, normed, rstd, D)
    tl.store(d_slots_ptr + at, d_slots, mask=valid)
    vectors_ptr += FIRST + d
    tl.store(vectors_ptr, tl.sum(d_normed * normed, 0), mask=columns)
    tl.store(vectors_ptr + D, tl.sum(d_normed, 0), mask=columns)
