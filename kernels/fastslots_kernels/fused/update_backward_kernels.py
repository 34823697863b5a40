"""Kernels of the slot update's backward: MLP and GRU, gates' products, keys (see kernels/README.md).

A program has a tile of rows, the slots of the whole batch. Rows past the end repeat the last one with a
gradient of 0, so that they add nothing to sums over rows: the gradients of vectors, stored per tile.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import (
    add_dot,
    divide,
    layer_norm,
    layer_norm_backward,
    wait_for_inputs,
)
from fastslots_kernels.fused.update_kernels import load_and_store_keys, sum_splits


@triton.jit
def mlp_gru_backward(
    tile_index,  # int64
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, new, from_hidden
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    hidden_ptr,  # out [R, M]
    d_hidden_ptr,  # out [R, M]
    normed_ptr,  # out [R, D]
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
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Back through the MLP, its LayerNorm and the gates, for one tile.

    Vectors: norm_mlp_weight, norm_mlp_bias, gru_bias_ih, gru_bias_hh, mlp_0_bias, mlp_2_bias.
    """
    tile: tl.constexpr = mlp_0_ptr.dtype.element_ty
    acc: tl.constexpr = slots_ptr.dtype.element_ty
    rows = tile_index * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    rows = tl.minimum(rows, num_rows - 1)
    d = tl.arange(0, BLOCK_D)
    columns = d < D
    wide = columns[None, :]
    valid = inside[:, None] & wide
    at = rows[:, None] * D + d[None, :]
    vectors = vectors_ptr + tile_index * VECTORS + FIRST

    reset_ptr, keep_ptr = gates_ptr + at, gates_ptr + (num_rows + rows)[:, None] * D + d[None, :]
    new_ptr = gates_ptr + (2 * num_rows + rows)[:, None] * D + d[None, :]
    from_hidden_ptr = gates_ptr + (3 * num_rows + rows)[:, None] * D + d[None, :]
    slots = tl.load(slots_ptr + at, mask=wide, other=0.0)
    keep = tl.load(keep_ptr, mask=wide, other=0.0)
    new = tl.load(new_ptr, mask=wide, other=0.0)
    normed, _ = layer_norm((1 - keep) * new + keep * slots, wide, D, EPS)
    norm_weight = tl.load(norm_weight_ptr + d, mask=columns, other=0.0)[None, :]
    norm_bias = tl.load(norm_bias_ptr + d, mask=columns, other=0.0)[None, :]
    mlp_in = (normed * norm_weight + norm_bias).to(tile)
    d_new_tile = tl.load(d_new_ptr + at, mask=valid, other=0.0).to(tile)
    tl.store(normed_ptr + at, mlp_in, mask=valid)

    d_mlp_in = tl.zeros([BLOCK_ROWS, BLOCK_D], acc)
    for first in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        m = first + tl.arange(0, BLOCK_M)
        mlp_0_at = mlp_0_ptr + m[:, None] * D + d[None, :]
        mlp_0 = tl.load(mlp_0_at, mask=(m < M)[:, None] & wide, other=0.0)
        mlp_2_at = mlp_2_ptr + d[:, None] * M + m[None, :]
        mlp_2 = tl.load(mlp_2_at, mask=columns[:, None] & (m < M)[None, :], other=0.0)
        zeros = tl.zeros([BLOCK_ROWS, BLOCK_M], acc)
        bias = tl.load(mlp_0_bias_ptr + m, mask=m < M, other=0.0)[None, :]
        hidden = add_dot(zeros, mlp_in, tl.trans(mlp_0), PRECISION) + bias
        d_hidden = add_dot(zeros, d_new_tile, mlp_2, PRECISION)
        d_hidden = tl.where(hidden > 0, d_hidden, 0.0)
        d_hidden_tile = d_hidden.to(tile)
        d_mlp_in = add_dot(d_mlp_in, d_hidden_tile, mlp_0, PRECISION)
        hidden_at = rows[:, None] * M + m[None, :]
        stored = inside[:, None] & (m < M)[None, :]
        tl.store(hidden_ptr + hidden_at, tl.maximum(hidden, 0.0).to(tile), mask=stored)
        tl.store(d_hidden_ptr + hidden_at, d_hidden_tile, mask=stored)
        tl.store(vectors + 8 * D + m, tl.sum(d_hidden, 0), mask=m < M)

    # Again, since registers are scarce above.
    d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
    slots = tl.load(slots_ptr + at, mask=wide, other=0.0)
    keep = tl.load(keep_ptr, mask=wide, other=0.0)
    new = tl.load(new_ptr, mask=wide, other=0.0)
    normed, rstd = layer_norm((1 - keep) * new + keep * slots, wide, D, EPS)
    norm_weight = tl.load(norm_weight_ptr + d, mask=columns, other=0.0)[None, :]
    tl.store(vectors + d, tl.sum(d_mlp_in * normed, 0), mask=columns)
    tl.store(vectors + D + d, tl.sum(d_mlp_in, 0), mask=columns)
    tl.store(vectors + 8 * D + M + d, tl.sum(d_new, 0), mask=columns)
    d_output = d_new + layer_norm_backward(d_mlp_in * norm_weight, normed, rstd, D)

    reset = tl.load(reset_ptr, mask=wide, other=0.0)
    from_hidden = tl.load(from_hidden_ptr, mask=wide, other=0.0)
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
    sum_reset, sum_keep = tl.sum(d_gate_reset, 0), tl.sum(d_gate_keep, 0)
    tl.store(vectors + 2 * D + d, sum_reset, mask=columns)
    tl.store(vectors + 3 * D + d, sum_keep, mask=columns)
    tl.store(vectors + 4 * D + d, tl.sum(d_gate_new, 0), mask=columns)
    tl.store(vectors + 5 * D + d, sum_reset, mask=columns)
    tl.store(vectors + 6 * D + d, sum_keep, mask=columns)
    tl.store(vectors + 7 * D + d, tl.sum(d_from_hidden, 0), mask=columns)


@triton.jit
def _update_backward_kernel(
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    norm_mlp_weight_ptr,  # [D]
    norm_mlp_bias_ptr,  # [D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_slots_weight_ptr,  # [D]
    norm_slots_bias_ptr,  # [D]
    hidden_ptr,  # out [R, M]
    d_hidden_ptr,  # out [R, M]
    normed_ptr,  # out [R, D]
    d_input_gates_ptr,  # out [R, 3 D]
    d_hidden_gates_ptr,  # out [R, 3 D]
    d_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS], from column FIRST on
    m_ptr,  # out [R, H C]
    c_ptr,  # out [R, H]
    plain_ptr,  # out [R, H C]
    num_rows,  # R
    num_tiles,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    FIRST: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One tile: back through the MLP and the gates or, by the second half of the programs, the keys again."""
    wait_for_inputs(DEPENDENT)
    pid = tl.program_id(0).to(tl.int64)
    if pid < num_tiles:
        mlp_gru_backward(
            pid, d_new_ptr, slots_ptr, gates_ptr, mlp_0_ptr, mlp_0_bias_ptr, mlp_2_ptr,
            norm_mlp_weight_ptr, norm_mlp_bias_ptr, hidden_ptr, d_hidden_ptr, normed_ptr,
            d_input_gates_ptr, d_hidden_gates_ptr, d_slots_ptr, vectors_ptr, num_rows,
            D, M, VECTORS, FIRST, NORM_MLP_EPS, PRECISION, BLOCK_ROWS, BLOCK_D, BLOCK_M, STAGES,
        )  # fmt: skip
    else:
        load_and_store_keys(
            slots_ptr, (pid - num_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS),
            m_ptr, c_ptr, plain_ptr, keys_ptr, scale_ptr, shift_ptr, norm_slots_weight_ptr,
            norm_slots_bias_ptr, num_rows,
            C, D, H, True, NORM_SLOTS_EPS, BLOCK_ROWS, BLOCK_D, BLOCK_KEYS, STAGES, PRECISION,
        )  # fmt: skip


@triton.jit
def gates_product(
    rows,
    inside,
    d_gates_ptr,  # [R, 3 D]
    weight_ptr,  # [3 D, ...], from its first column on
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_GATES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of gates times some columns of the weight that made them."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_ROWS, BLOCK], ACC)
    for first in tl.range(0, 3 * D, BLOCK_GATES, num_stages=STAGES):
        g = first + tl.arange(0, BLOCK_GATES)
        gates_at = d_gates_ptr + rows[:, None] * (3 * D) + g[None, :]
        d_gates = tl.load(gates_at, mask=inside[:, None] & (g < 3 * D)[None, :], other=0.0)
        weight_at = weight_ptr + g[:, None] * STRIDE + column[None, :]
        valid = (g < 3 * D)[:, None] & (column < COLUMNS)[None, :]
        weight = tl.load(weight_at, mask=valid, other=0.0)
        total = add_dot(total, d_gates, weight, PRECISION)
    return total


@triton.jit
def mean_backward(
    d_averaged,  # [BLOCK_ROWS, BLOCK_C]
    rows,
    inside,
    head,
    sums_ptr,  # [B, 1, sums_size]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    d_sums_ptr,  # out [B, 1, sums_size], but for its padding
    averaged_ptr,  # out [R, H C]: ū
    vectors_ptr,  # out [VECTORS]
    num_slots,
    sums_size,
    C: tl.constexpr,
    H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Back through the weighted mean of one head."""
    c = tl.arange(0, BLOCK_C)
    columns = c < C
    image, slot = rows // num_slots, rows % num_slots
    total_at = image * sums_size + num_slots * H * C + slot * H + head
    total = tl.load(sums_ptr + total_at)[:, None]
    filled = total != 0
    inverse = tl.where(filled, divide(1.0, tl.where(filled, total, 1.0)), 0.0)
    d_averaged = tl.where(filled, d_averaged, 0.0)
    at = (image * sums_size + (slot * H + head) * C)[:, None] + c[None, :]
    mean = tl.load(sums_ptr + at, mask=columns[None, :], other=0.0) * inverse
    scale = tl.load(scale_ptr + c, mask=columns, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=columns, other=0.0)[None, :]
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
def add_tile(tile, rows, inside, to_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Adds to some rows of ``[R, D]``."""
    d = tl.arange(0, BLOCK_D)
    at = to_ptr + rows[:, None] * D + d[None, :]
    valid = inside[:, None] & (d < D)[None, :]
    tl.store(at, tl.load(at, mask=valid, other=0.0) + tile, mask=valid)


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
    BLOCK_GATES: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One tile: back through the gates' product with one head's weighted mean or with the slots.

    Vectors: norm_inputs_weight and norm_inputs_bias for every head, but for what comes through the keys.
    """
    wait_for_inputs(DEPENDENT)
    acc: tl.constexpr = sums_ptr.dtype.element_ty
    pid = (tl.program_id(0) // (H + 1)).to(tl.int64)
    head = tl.program_id(0) % (H + 1)
    rows = pid * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    rows = tl.minimum(rows, num_rows - 1)
    if head < H:
        d_averaged = gates_product(
            rows, inside, d_input_gates_ptr, values_ptr + head * C, H * C, C,
            D, acc, PRECISION, BLOCK_ROWS, BLOCK_C, BLOCK_GATES, STAGES,
        )  # fmt: skip
        mean_backward(
            d_averaged, rows, inside, head, sums_ptr, scale_ptr, shift_ptr, d_sums_ptr,
            averaged_ptr, vectors_ptr + pid * VECTORS, num_slots, sums_size, C, H, BLOCK_C,
        )  # fmt: skip
    else:
        d_slots = gates_product(
            rows, inside, d_hidden_gates_ptr, hidden_ptr, D, D,
            D, acc, PRECISION, BLOCK_ROWS, BLOCK_D, BLOCK_GATES, STAGES,
        )  # fmt: skip
        add_tile(d_slots, rows, inside, d_slots_ptr, D, BLOCK_D)


@triton.jit
def _keys_backward_kernel(
    d_keys_ptr,  # [B, S, sums_size]: dm [K, H C], then dc [K, H]; their sum over S counts
    plain_ptr,  # [R, H C]
    slots_ptr,  # [R, D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    d_plain_ptr,  # out [R, H C]
    normed_ptr,  # out [R, D]
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
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One tile back through the keys and the slots' LayerNorm.

    Vectors: adds what comes through the keys to norm_inputs_weight and norm_inputs_bias; norm_slots_weight
    and norm_slots_bias, from column FIRST on.
    """
    wait_for_inputs(DEPENDENT)
    tile: tl.constexpr = keys_ptr.dtype.element_ty
    acc: tl.constexpr = slots_ptr.dtype.element_ty
    width: tl.constexpr = H * C
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    rows = tl.minimum(rows, num_rows - 1)
    d = tl.arange(0, BLOCK_D)
    columns = d < D
    wide = columns[None, :]
    valid = inside[:, None] & wide
    at = rows[:, None] * D + d[None, :]
    image, slot = rows // num_slots, rows % num_slots
    vectors = vectors_ptr + pid * VECTORS

    d_keys_ptr += image * NUM_SPLITS * sums_size
    d_normed = tl.zeros([BLOCK_ROWS, BLOCK_D], acc)
    for head in range(H):
        c_at = d_keys_ptr + num_slots * width + slot * H + head
        d_c = sum_splits(c_at, inside, NUM_SPLITS, sums_size)[:, None]
        for first in tl.range(0, C, BLOCK_C, num_stages=STAGES):
            c = first + tl.arange(0, BLOCK_C)
            valid_c = c < C
            keys_at = keys_ptr + d[:, None] * width + (head * C + c)[None, :]
            keys = tl.load(keys_at, mask=columns[:, None] & valid_c[None, :], other=0.0)
            both = inside[:, None] & valid_c[None, :]
            m_at = d_keys_ptr[:, None] + slot[:, None] * width + (head * C + c)[None, :]
            d_m = sum_splits(m_at, both, NUM_SPLITS, sums_size)
            plain_at = rows[:, None] * width + (head * C + c)[None, :]
            plain = tl.load(plain_ptr + plain_at, mask=both, other=0.0)
            vectors_at = vectors + head * C + c
            d_scale = tl.load(vectors_at, mask=valid_c, other=0.0) + tl.sum(d_m * plain, 0)
            d_shift = tl.load(vectors_at + width, mask=valid_c, other=0.0)
            tl.store(vectors_at, d_scale, mask=valid_c)
            tl.store(vectors_at + width, d_shift + tl.sum(d_c * plain, 0), mask=valid_c)
            scale = tl.load(scale_ptr + c, mask=valid_c, other=0.0)[None, :]
            shift = tl.load(shift_ptr + c, mask=valid_c, other=0.0)[None, :]
            d_plain = (d_m * scale + d_c * shift).to(tile)
            tl.store(d_plain_ptr + plain_at, d_plain, mask=both)
            d_normed = add_dot(d_normed, d_plain, tl.trans(keys), PRECISION)

    slots = tl.load(slots_ptr + at, mask=wide, other=0.0)
    normed, rstd = layer_norm(slots, wide, D, EPS)
    norm_weight = tl.load(norm_weight_ptr + d, mask=columns, other=0.0)[None, :]
    norm_bias = tl.load(norm_bias_ptr + d, mask=columns, other=0.0)[None, :]
    tl.store(normed_ptr + at, (normed * norm_weight + norm_bias).to(tile), mask=valid)
    vectors += FIRST
    tl.store(vectors + d, tl.sum(d_normed * normed, 0), mask=columns)
    tl.store(vectors + D + d, tl.sum(d_normed, 0), mask=columns)

    d_slots = tl.load(d_slots_ptr + at, mask=valid, other=0.0)
    d_slots += layer_norm_backward(d_normed * norm_weight, normed, rstd, D)
    tl.store(d_slots_ptr + at, d_slots, mask=valid)
