"""The slot update on tiles of rows: GRU, MLP, next keys. Mathematics: kernels/README.md.

Kernels are composed of the functions without an underscore. Row r is slot ``r % K`` of image ``r // K``.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import (
    add_dot,
    layer_norm,
    ratio,
    sigmoid,
    tanh,
    wait_for_inputs,
)


@triton.jit
def load_row(pointers, valid):
    """A vector as one row of a tile."""
    return tl.load(pointers, mask=valid, other=0.0)[None, :]


@triton.jit
def sum_splits(pointers, valid, NUM_SPLITS: tl.constexpr, stride):
    """What lies at `pointers`, summed over the splits in order; those lie `stride` entries apart."""
    total = tl.load(pointers, mask=valid, other=0.0)
    for split in tl.static_range(1, NUM_SPLITS):
        total += tl.load(pointers + split * stride, mask=valid, other=0.0)
    return total


@triton.jit
def gru_columns(
    rows,  # [BLOCK_ROWS], int64
    first_column,
    sums_ptr,  # [B, S, sums_size]
    slots_ptr,  # [R, D]
    output_ptr,  # [R, D]
    reduced_ptr,  # [B, sums_size]
    gates_ptr,  # [4, R, D]: reset, keep, new, from_hidden
    values_ptr,  # [3 D, H C]
    hidden_ptr,  # [3 D, D]
    bias_ih_ptr,  # [3 D]
    bias_hh_ptr,  # [3 D]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    STORE_SUMS: tl.constexpr,
    STORE_GATES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRU_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the GRU's output for some rows and the columns from `first_column` on.

    With STORE_SUMS also the sums over all splits, by the program of column 0; with STORE_GATES the gates.
    """
    tile = values_ptr.dtype.element_ty
    width: tl.constexpr = H * C
    valid_row = rows < num_rows
    once = rows < tl.where(first_column == 0, num_rows, 0)
    sums_ptr += (rows // num_slots * NUM_SPLITS * sums_size)[:, None]
    reduced_ptr += (rows // num_slots * sums_size)[:, None]
    slot = (rows % num_slots)[:, None]

    d = first_column + tl.arange(0, BLOCK_D)
    valid_d = d < D
    bias_ih_ptr += d
    bias_hh_ptr += d
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_D], slots_ptr.dtype.element_ty)
    reset = zeros + load_row(bias_ih_ptr, valid_d) + load_row(bias_hh_ptr, valid_d)
    keep = zeros + load_row(bias_ih_ptr + D, valid_d) + load_row(bias_hh_ptr + D, valid_d)
    new = zeros + load_row(bias_ih_ptr + 2 * D, valid_d)
    from_hidden = zeros + load_row(bias_hh_ptr + 2 * D, valid_d)

    if STORE_SUMS:
        at_padding = num_slots * (width + H) + tl.arange(0, 16)[None, :]
        last = once[:, None] & (slot == num_slots - 1) & (at_padding < sums_size)
        tl.store(reduced_ptr + at_padding, 0.0, mask=last)
    for h in range(H):
        at_total = num_slots * width + slot * H + h
        total = sum_splits(sums_ptr + at_total, valid_row[:, None], NUM_SPLITS, sums_size)
        # 0 only for an image without a valid input. Compared so that NaN stays NaN.
        empty = total == 0
        divisor = tl.where(empty, 1.0, total)
        if STORE_SUMS:
            tl.store(reduced_ptr + at_total, total, mask=once[:, None])
        for first in tl.range(0, C, GRU_CHUNK, num_stages=STAGES):
            c = first + tl.arange(0, GRU_CHUNK)
            valid_c = c < C
            weight = values_ptr + d[None, :] * width + (h * C + c)[:, None]
            valid_weight = valid_c[:, None] & valid_d[None, :]
            weight_r = tl.load(weight, mask=valid_weight, other=0.0)
            weight_k = tl.load(weight + D * width, mask=valid_weight, other=0.0)
            weight_n = tl.load(weight + 2 * D * width, mask=valid_weight, other=0.0)

            at_sums = slot * width + (h * C + c)[None, :]
            valid_sums = valid_row[:, None] & valid_c[None, :]
            sums = sum_splits(sums_ptr + at_sums, valid_sums, NUM_SPLITS, sums_size)
            averaged = ratio(sums, divisor, tile) * load_row(scale_ptr + c, valid_c)
            averaged = tl.where(empty, 0.0, averaged + load_row(shift_ptr + c, valid_c)).to(tile)
            reset = add_dot(reset, averaged, weight_r, PRECISION)
            keep = add_dot(keep, averaged, weight_k, PRECISION)
            new = add_dot(new, averaged, weight_n, PRECISION)
            if STORE_SUMS:
                tl.store(reduced_ptr + at_sums, sums, mask=once[:, None] & valid_c[None, :])

    for first in tl.range(0, D, GRU_CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, GRU_CHUNK)
        valid_i = i < D
        weight = hidden_ptr + d[None, :] * D + i[:, None]
        valid_weight = valid_i[:, None] & valid_d[None, :]
        weight_r = tl.load(weight, mask=valid_weight, other=0.0)
        weight_k = tl.load(weight + D * D, mask=valid_weight, other=0.0)
        weight_n = tl.load(weight + 2 * D * D, mask=valid_weight, other=0.0)
        at_slots = slots_ptr + rows[:, None] * D + i[None, :]
        slots = tl.load(at_slots, mask=valid_row[:, None] & valid_i[None, :], other=0.0).to(tile)
        reset = add_dot(reset, slots, weight_r, PRECISION)
        keep = add_dot(keep, slots, weight_k, PRECISION)
        from_hidden = add_dot(from_hidden, slots, weight_n, PRECISION)

    reset = sigmoid(reset)
    keep = sigmoid(keep)
    new = tanh(new + reset * from_hidden)
    at = rows[:, None] * D + d[None, :]
    valid = valid_row[:, None] & valid_d[None, :]
    previous = tl.load(slots_ptr + at, mask=valid, other=0.0)
    tl.store(output_ptr + at, (1 - keep) * new + keep * previous, mask=valid)
    if STORE_GATES:
        gates_ptr += d[None, :]
        tl.store(gates_ptr + (rows * D)[:, None], reset, mask=valid)
        tl.store(gates_ptr + ((num_rows + rows) * D)[:, None], keep, mask=valid)
        tl.store(gates_ptr + ((2 * num_rows + rows) * D)[:, None], new, mask=valid)
        tl.store(gates_ptr + ((3 * num_rows + rows) * D)[:, None], from_hidden, mask=valid)


@triton.jit
def mlp_rows(
    rows,  # [BLOCK_ROWS], int64
    first_hidden,
    last_hidden,
    output_ptr,  # [R, D]: of the GRU
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    mlp_2_bias_ptr,  # [D]
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    NORM_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What some hidden units make of some rows, ``[BLOCK_ROWS, PADDED_D]``.

    All of them together: the GRU's output plus its MLP. The first part holds the output and the MLP's bias.
    """
    tile = mlp_0_ptr.dtype.element_ty
    d = tl.arange(0, PADDED_D)
    valid_d = d < D
    valid = (rows < num_rows)[:, None] & valid_d[None, :]
    output = tl.load(output_ptr + rows[:, None] * D + d[None, :], mask=valid, other=0.0)
    normed, _ = layer_norm(output, valid, D, NORM_EPS)
    normed = normed * load_row(norm_weight_ptr + d, valid_d) + load_row(norm_bias_ptr + d, valid_d)
    normed = normed.to(tile)
    new = tl.where(first_hidden == 0, output + load_row(mlp_2_bias_ptr + d, valid_d), 0.0)
    for first in tl.range(first_hidden, last_hidden, ROW_CHUNK, num_stages=STAGES):
        m = first + tl.arange(0, ROW_CHUNK)
        valid_m = m < last_hidden
        weight_0 = tl.load(
            mlp_0_ptr + m[None, :] * D + d[:, None],
            mask=valid_d[:, None] & valid_m[None, :],
            other=0.0,
        )
        weight_2 = tl.load(
            mlp_2_ptr + d[None, :] * M + m[:, None],
            mask=valid_m[:, None] & valid_d[None, :],
            other=0.0,
        )
        zeros = tl.zeros([BLOCK_ROWS, ROW_CHUNK], output.dtype)
        hidden = add_dot(zeros, normed, weight_0, PRECISION) + load_row(mlp_0_bias_ptr + m, valid_m)
        new = add_dot(new, tl.maximum(hidden, 0.0).to(tile), weight_2, PRECISION)
    return new


@triton.jit
def store_keys(
    slots,  # [BLOCK_ROWS, PADDED_D]
    rows,  # [BLOCK_ROWS], int64
    m_ptr,  # [R, H C]
    c_ptr,  # [R, H]
    plain_ptr,  # [R, H C]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    STORE_PLAIN: tl.constexpr,
    NORM_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores the keys of some rows of slots; with STORE_PLAIN also without the inputs' affine."""
    d = tl.arange(0, PADDED_D)
    valid_d = d < D
    valid_row = rows < num_rows
    normed, _ = layer_norm(slots, valid_d[None, :], D, NORM_EPS)
    normed = normed * load_row(norm_weight_ptr + d, valid_d) + load_row(norm_bias_ptr + d, valid_d)
    normed = normed.to(keys_ptr.dtype.element_ty)
    width: tl.constexpr = H * C
    for h in range(H):
        total = tl.zeros([BLOCK_ROWS], slots.dtype)
        for first in tl.range(0, C, ROW_CHUNK, num_stages=STAGES):
            c = first + tl.arange(0, ROW_CHUNK)
            valid_c = c < C
            at_weight = keys_ptr + d[:, None] * width + (h * C + c)[None, :]
            weight = tl.load(at_weight, mask=valid_d[:, None] & valid_c[None, :], other=0.0)
            key = add_dot(tl.zeros([BLOCK_ROWS, ROW_CHUNK], slots.dtype), normed, weight, PRECISION)
            total += tl.sum(key * load_row(shift_ptr + c, valid_c), 1)
            m = (key * load_row(scale_ptr + c, valid_c)).to(m_ptr.dtype.element_ty)
            at = rows[:, None] * width + (h * C + c)[None, :]
            tl.store(m_ptr + at, m, mask=valid_row[:, None] & valid_c[None, :])
            if STORE_PLAIN:
                tl.store(plain_ptr + at, key, mask=valid_row[:, None] & valid_c[None, :])
        tl.store(c_ptr + rows * H + h, total, mask=valid_row)


@triton.jit
def load_and_store_keys(
    slots_ptr,  # [R, D]
    rows,  # [BLOCK_ROWS], int64
    m_ptr,  # [R, H C]
    c_ptr,  # [R, H]
    plain_ptr,  # [R, H C]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    STORE_PLAIN: tl.constexpr,
    NORM_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`store_keys` of slots in memory."""
    d = tl.arange(0, PADDED_D)
    valid = (rows < num_rows)[:, None] & (d < D)[None, :]
    slots = tl.load(slots_ptr + rows[:, None] * D + d[None, :], mask=valid, other=0.0)
    store_keys(
        slots, rows, m_ptr, c_ptr, plain_ptr, keys_ptr, scale_ptr, shift_ptr, norm_weight_ptr,
        norm_bias_ptr, num_rows,
        C, D, H, STORE_PLAIN, NORM_EPS, BLOCK_ROWS, PADDED_D, ROW_CHUNK, STAGES, PRECISION,
    )  # fmt: skip


@triton.jit
def store_slots(
    new,  # [BLOCK_ROWS, PADDED_D], 0 in the padded columns
    rows,  # [BLOCK_ROWS], int64
    slots_ptr,  # [R, D]
    new_ptr,  # [R, D], may be slots_ptr
    residual_ptr,  # [R, 2]
    num_rows,
    D: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    """Stores new slots; with RESIDUAL also, per row, the sums of their change and their own squares."""
    d = tl.arange(0, PADDED_D)
    at = rows[:, None] * D + d[None, :]
    valid_row = rows < num_rows
    valid = valid_row[:, None] & (d < D)[None, :]
    if RESIDUAL:
        change = new - tl.load(slots_ptr + at, mask=valid, other=0.0)
        tl.store(residual_ptr + rows * 2, tl.sum(change * change, 1), mask=valid_row)
        tl.store(residual_ptr + rows * 2 + 1, tl.sum(new * new, 1), mask=valid_row)
        # The old slots may lie where the new ones go: all threads have read before one writes.
        tl.debug_barrier()
    tl.store(new_ptr + at, new, mask=valid)


@triton.jit
def _keys_kernel(
    slots_ptr,  # [R, D]
    m_ptr,  # [R, H C]
    c_ptr,  # [R, H]
    plain_ptr,  # [R, H C]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    STORE_PLAIN: tl.constexpr,
    NORM_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The keys of one tile of rows."""
    wait_for_inputs(DEPENDENT)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    load_and_store_keys(
        slots_ptr, rows, m_ptr, c_ptr, plain_ptr, keys_ptr, scale_ptr, shift_ptr, norm_weight_ptr,
        norm_bias_ptr, num_rows,
        C, D, H, STORE_PLAIN, NORM_EPS, BLOCK_ROWS, PADDED_D, ROW_CHUNK, STAGES, PRECISION,
    )  # fmt: skip


@triton.jit
def _gru_kernel(
    sums_ptr,  # [B, S, sums_size]
    slots_ptr,  # [R, D]
    output_ptr,  # [R, D]
    reduced_ptr,  # [B, sums_size]
    gates_ptr,  # [4, R, D]
    values_ptr,  # [3 D, H C]
    hidden_ptr,  # [3 D, D]
    bias_ih_ptr,  # [3 D]
    bias_hh_ptr,  # [3 D]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    stop_ptr,  # []
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    HAS_STOP: tl.constexpr,
    STORE_SUMS: tl.constexpr,
    STORE_GATES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRU_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The GRU's output in one tile of rows and columns."""
    wait_for_inputs(DEPENDENT)
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    first_row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_ROWS
    gru_columns(
        first_row + tl.arange(0, BLOCK_ROWS), tl.program_id(0) % column_blocks * BLOCK_D,
        sums_ptr, slots_ptr, output_ptr, reduced_ptr, gates_ptr,
        values_ptr, hidden_ptr, bias_ih_ptr, bias_hh_ptr, scale_ptr, shift_ptr,
        num_rows, num_slots, sums_size, NUM_SPLITS, C, D, H,
        STORE_SUMS, STORE_GATES, BLOCK_ROWS, BLOCK_D, GRU_CHUNK, STAGES, PRECISION,
    )  # fmt: skip


@triton.jit
def _mlp_kernel(
    output_ptr,  # [R, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    mlp_2_bias_ptr,  # [D]
    parts_ptr,  # [PARTS, R, D]
    stop_ptr,  # []
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    NORM_EPS: tl.constexpr,
    HAS_STOP: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """What one part of the hidden units makes of one tile of rows."""
    wait_for_inputs(DEPENDENT)
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    part, size = tl.program_id(0) % PARTS, (M + PARTS - 1) // PARTS
    rows = (tl.program_id(0) // PARTS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    new = mlp_rows(
        rows, part * size, tl.minimum((part + 1) * size, M), output_ptr, norm_weight_ptr,
        norm_bias_ptr, mlp_0_ptr, mlp_0_bias_ptr, mlp_2_ptr, mlp_2_bias_ptr, num_rows,
        D, M, NORM_EPS, BLOCK_ROWS, PADDED_D, ROW_CHUNK, STAGES, PRECISION,
    )  # fmt: skip
    d = tl.arange(0, PADDED_D)
    at = parts_ptr + ((part.to(tl.int64) * num_rows + rows) * D)[:, None] + d[None, :]
    tl.store(at, new, mask=(rows < num_rows)[:, None] & (d < D)[None, :])


@triton.jit
def _update_kernel(
    sums_ptr,  # [B, S, sums_size]
    slots_ptr,  # [R, D]
    output_ptr,  # [R, D]
    reduced_ptr,  # [B, sums_size]
    gates_ptr,  # [4, R, D]
    values_ptr,  # [3 D, H C]
    hidden_ptr,  # [3 D, D]
    bias_ih_ptr,  # [3 D]
    bias_hh_ptr,  # [3 D]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    new_ptr,  # [R, D], may be slots_ptr
    residual_ptr,  # [R, 2]
    norm_mlp_weight_ptr,  # [D]
    norm_mlp_bias_ptr,  # [D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    mlp_2_ptr,  # [D, M]
    mlp_2_bias_ptr,  # [D]
    parts_ptr,  # [PARTS, R, D]
    m_ptr,  # [R, H C]
    c_ptr,  # [R, H]
    keys_ptr,  # [D, H C]
    norm_slots_weight_ptr,  # [D]
    norm_slots_bias_ptr,  # [D]
    stop_ptr,  # []
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    HAS_STOP: tl.constexpr,
    RUN_GRU: tl.constexpr,
    STORE_SUMS: tl.constexpr,
    STORE_GATES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MAKE_KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRU_CHUNK: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The new slots of one tile of rows, and their keys.

    From the GRU's output, which RUN_GRU makes first, or from PARTS that the MLP has made of it, if not 0.
    """
    wait_for_inputs(DEPENDENT)
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if RUN_GRU:
        for first_column in range(0, D, BLOCK_D):
            gru_columns(
                rows, first_column, sums_ptr, slots_ptr, output_ptr, reduced_ptr,
                gates_ptr, values_ptr, hidden_ptr, bias_ih_ptr, bias_hh_ptr,
                scale_ptr, shift_ptr, num_rows, num_slots, sums_size, NUM_SPLITS, C, D, H,
                STORE_SUMS, STORE_GATES, BLOCK_ROWS, BLOCK_D, GRU_CHUNK, STAGES, PRECISION,
            )  # fmt: skip
        # Rows are read by other threads than those that wrote them.
        tl.debug_barrier()
    if PARTS:
        d = tl.arange(0, PADDED_D)
        valid = (rows < num_rows)[:, None] & (d < D)[None, :]
        at = parts_ptr + (rows * D)[:, None] + d[None, :]
        new = sum_splits(at, valid, PARTS, num_rows.to(tl.int64) * D)
    else:
        new = mlp_rows(
            rows, 0, M, output_ptr, norm_mlp_weight_ptr, norm_mlp_bias_ptr,
            mlp_0_ptr, mlp_0_bias_ptr, mlp_2_ptr, mlp_2_bias_ptr, num_rows,
            D, M, NORM_MLP_EPS, BLOCK_ROWS, PADDED_D, ROW_CHUNK, STAGES, PRECISION,
        )  # fmt: skip
    store_slots(new, rows, slots_ptr, new_ptr, residual_ptr, num_rows, D, RESIDUAL, PADDED_D)
    if MAKE_KEYS:
        store_keys(
            new, rows, m_ptr, c_ptr, m_ptr, keys_ptr, scale_ptr, shift_ptr, norm_slots_weight_ptr,
            norm_slots_bias_ptr, num_rows,
            C, D, H, False, NORM_SLOTS_EPS, BLOCK_ROWS, PADDED_D, ROW_CHUNK, STAGES, PRECISION,
        )  # fmt: skip
