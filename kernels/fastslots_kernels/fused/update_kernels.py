"""The slot update: weighted means, GRU, MLP, next keys. Mathematics: kernels/README.md.

Each kernel spreads rows and columns over programs and does little: the chain of launches is bound by latency.
Operands of products come from memory in the tile dtype, or are rows that a program has normalised: other
arithmetic on an operand would be done again by every warp. Row r is slot ``r % K`` of image ``r // K``.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import (
    add_dot,
    layer_norm,
    ratio,
    sigmoid,
    tanh,
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
def tile_of(COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Rows, int64, and columns of a program, of which all those of some rows follow one another."""
    blocks: tl.constexpr = (COLUMNS + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    pid = tl.program_id(0)
    rows = (pid // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return rows, pid % blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)


@triton.jit
def normed_rows(
    x,  # [BLOCK_ROWS, PADDED_D]
    d,
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    D: tl.constexpr,
    EPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """LayerNorm of whole rows, affine included, in a tile dtype."""
    valid_d = d < D
    normed, _ = layer_norm(x, valid_d[None, :], D, EPS, TILE)
    return (normed * load_row(weight_ptr + d, valid_d) + load_row(bias_ptr + d, valid_d)).to(TILE)


@triton.jit
def load_weight(weight_ptr, outputs, valid, k, K: tl.constexpr):
    """Some columns of some rows of a weight ``[outputs, K]``, transposed: the right factor of a product."""
    weight = weight_ptr + outputs[None, :] * K + k[:, None]
    return tl.load(weight, mask=valid[None, :] & (k < K)[:, None], other=0.0)


@triton.jit
def _average_kernel(
    sums_ptr,  # [B, S, sums_size]
    averaged_ptr,  # [R, H C]
    reduced_ptr,  # [B, sums_size]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    stop_ptr,  # []
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    HAS_STOP: tl.constexpr,
    STORE_SUMS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
):
    """``ū = U / Z ∘ scale + shift`` of some rows and one head, 0 where Z is 0.

    With STORE_SUMS also the sums over all splits, and zeros for their padding.
    """
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    width: tl.constexpr = H * C
    h = tl.program_id(0) % H
    row = (tl.program_id(0) // H) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid_row = row < num_rows
    image, slot = (row // num_slots).to(tl.int64), row % num_slots
    c = tl.arange(0, PADDED_C)
    valid_c = c < C
    valid = valid_row[:, None] & valid_c[None, :]
    at = slot[:, None] * width + h * C + c[None, :]
    at_total = num_slots * width + slot * H + h
    sums_ptr += image * NUM_SPLITS * sums_size
    sums = sum_splits(sums_ptr[:, None] + at, valid, NUM_SPLITS, sums_size)
    total = sum_splits(sums_ptr + at_total, valid_row, NUM_SPLITS, sums_size)

    tile: tl.constexpr = averaged_ptr.dtype.element_ty
    # 0 only for an image without a valid input. Compared so that NaN stays NaN.
    empty = (total == 0)[:, None]
    averaged = ratio(sums, tl.where(empty, 1.0, total[:, None]), tile)
    averaged = averaged * load_row(scale_ptr + c, valid_c) + load_row(shift_ptr + c, valid_c)
    averaged = tl.where(empty, 0.0, averaged).to(tile)
    at_averaged = averaged_ptr + (row.to(tl.int64) * width)[:, None] + h * C + c[None, :]
    tl.store(at_averaged, averaged, mask=valid)
    if STORE_SUMS:
        reduced_ptr += image * sums_size
        tl.store(reduced_ptr[:, None] + at, sums, mask=valid)
        tl.store(reduced_ptr + at_total, total, mask=valid_row)
        first_pad = num_slots * (width + H)
        pad = first_pad + tl.arange(0, 16)
        last_row = valid_row & (slot == num_slots - 1) & (h == 0)
        padding = last_row[:, None] & (pad < sums_size)[None, :]
        zeros = tl.zeros([BLOCK_ROWS, 16], sums.dtype)
        tl.store(reduced_ptr[:, None] + pad[None, :], zeros, mask=padding)


@triton.jit
def _gru_kernel(
    averaged_ptr,  # [R, H C], tile dtype
    rounded_ptr,  # [R, D], slots in the tile dtype
    slots_ptr,  # [R, D]
    output_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, new, from_hidden
    values_ptr,  # [3 D, H C]
    hidden_ptr,  # [3 D, D]
    bias_ih_ptr,  # [3 D]
    bias_hh_ptr,  # [3 D]
    stop_ptr,  # []
    num_rows,
    W: tl.constexpr,  # H C
    D: tl.constexpr,
    HAS_STOP: tl.constexpr,
    STORE_GATES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The GRU's output in one tile of rows and columns; with STORE_GATES also its gates."""
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    rows, d = tile_of(D, BLOCK_ROWS, BLOCK_D)
    valid_row, valid_d = rows < num_rows, d < D
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_D], slots_ptr.dtype.element_ty)
    ih, hh = bias_ih_ptr + d, bias_hh_ptr + d
    reset = zeros + load_row(ih, valid_d) + load_row(hh, valid_d)
    keep = zeros + load_row(ih + D, valid_d) + load_row(hh + D, valid_d)
    new = zeros + load_row(ih + 2 * D, valid_d)
    from_hidden = zeros + load_row(hh + 2 * D, valid_d)
    for first in tl.range(0, W, CHUNK, num_stages=STAGES):
        w = first + tl.arange(0, CHUNK)
        at = averaged_ptr + rows[:, None] * W + w[None, :]
        averaged = tl.load(at, mask=valid_row[:, None] & (w < W)[None, :], other=0.0)
        reset = add_dot(reset, averaged, load_weight(values_ptr, d, valid_d, w, W), PRECISION)
        keep = add_dot(keep, averaged, load_weight(values_ptr + D * W, d, valid_d, w, W), PRECISION)
        new = add_dot(
            new, averaged, load_weight(values_ptr + 2 * D * W, d, valid_d, w, W), PRECISION
        )
    for first in tl.range(0, D, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        at = rounded_ptr + rows[:, None] * D + i[None, :]
        slots = tl.load(at, mask=valid_row[:, None] & (i < D)[None, :], other=0.0)
        reset = add_dot(reset, slots, load_weight(hidden_ptr, d, valid_d, i, D), PRECISION)
        keep = add_dot(keep, slots, load_weight(hidden_ptr + D * D, d, valid_d, i, D), PRECISION)
        weight = load_weight(hidden_ptr + 2 * D * D, d, valid_d, i, D)
        from_hidden = add_dot(from_hidden, slots, weight, PRECISION)

    tile: tl.constexpr = rounded_ptr.dtype.element_ty
    reset, keep = sigmoid(reset, tile), sigmoid(keep, tile)
    new = tanh(new + reset * from_hidden, tile)
    at = rows[:, None] * D + d[None, :]
    valid = valid_row[:, None] & valid_d[None, :]
    previous = tl.load(slots_ptr + at, mask=valid, other=0.0)
    tl.store(output_ptr + at, (1 - keep) * new + keep * previous, mask=valid)
    if STORE_GATES:
        size = num_rows.to(tl.int64) * D
        tl.store(gates_ptr + at, reset, mask=valid)
        tl.store(gates_ptr + size + at, keep, mask=valid)
        tl.store(gates_ptr + 2 * size + at, new, mask=valid)
        tl.store(gates_ptr + 3 * size + at, from_hidden, mask=valid)


@triton.jit
def _hidden_kernel(
    output_ptr,  # [R, D]: of the GRU
    hidden_ptr,  # [R, M], tile dtype
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    stop_ptr,  # []
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    EPS: tl.constexpr,
    HAS_STOP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PADDED_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The MLP's hidden units, after the ReLU, in one tile of rows and columns."""
    rows, m = tile_of(M, BLOCK_ROWS, BLOCK_M)
    valid_row, valid_m, d = rows < num_rows, m < M, tl.arange(0, PADDED_D)
    weight = load_weight(mlp_0_ptr, m, valid_m, d, D)
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    valid = valid_row[:, None] & (d < D)[None, :]
    output = tl.load(output_ptr + rows[:, None] * D + d[None, :], mask=valid, other=0.0)
    tile: tl.constexpr = hidden_ptr.dtype.element_ty
    normed = normed_rows(output, d, norm_weight_ptr, norm_bias_ptr, D, EPS, tile)
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_M], output.dtype)
    hidden = add_dot(zeros, normed, weight, PRECISION)
    hidden = tl.maximum(hidden + load_row(mlp_0_bias_ptr + m, valid_m), 0.0).to(tile)
    at = hidden_ptr + rows[:, None] * M + m[None, :]
    tl.store(at, hidden, mask=valid_row[:, None] & valid_m[None, :])


@triton.jit
def _new_kernel(
    hidden_ptr,  # [R, M], tile dtype
    output_ptr,  # [R, D]: of the GRU
    slots_ptr,  # [R, D]
    new_ptr,  # [R, D], may be slots_ptr
    residual_ptr,  # [R, blocks of columns, 2]
    mlp_2_ptr,  # [D, M]
    mlp_2_bias_ptr,  # [D]
    stop_ptr,  # []
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    HAS_STOP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The new slots in one tile of rows and columns: the GRU's output plus its MLP.

    With RESIDUAL also, per row, sums of the squares of their change and of themselves.
    """
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    rows, d = tile_of(D, BLOCK_ROWS, BLOCK_D)
    valid_row, valid_d = rows < num_rows, d < D
    new = tl.zeros([BLOCK_ROWS, BLOCK_D], output_ptr.dtype.element_ty)
    for first in tl.range(0, M, CHUNK, num_stages=STAGES):
        m = first + tl.arange(0, CHUNK)
        at = hidden_ptr + rows[:, None] * M + m[None, :]
        hidden = tl.load(at, mask=valid_row[:, None] & (m < M)[None, :], other=0.0)
        new = add_dot(new, hidden, load_weight(mlp_2_ptr, d, valid_d, m, M), PRECISION)
    at = rows[:, None] * D + d[None, :]
    valid = valid_row[:, None] & valid_d[None, :]
    output = tl.load(output_ptr + at, mask=valid, other=0.0)
    new += output + load_row(mlp_2_bias_ptr + d, valid_d)
    if RESIDUAL:
        blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
        change = tl.where(valid, new - tl.load(slots_ptr + at, mask=valid, other=0.0), 0.0)
        at_residual = residual_ptr + (rows * blocks + tl.program_id(0) % blocks) * 2
        tl.store(at_residual, tl.sum(change * change, 1), mask=valid_row)
        tl.store(at_residual + 1, tl.sum(tl.where(valid, new * new, 0.0), 1), mask=valid_row)
        # The old slots may lie where the new ones go: all threads have read before one writes.
        tl.debug_barrier()
    tl.store(new_ptr + at, new, mask=valid)


@triton.jit
def _keys_kernel(
    slots_ptr,  # [R, D]
    m_ptr,  # [R, H C]
    c_ptr,  # [R, H, blocks of columns]
    rounded_ptr,  # [R, D]
    keys_ptr,  # [D, H C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    stop_ptr,  # []
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    EPS: tl.constexpr,
    HAS_STOP: tl.constexpr,
    STORE_ROUNDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PADDED_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The keys of one tile of rows and of columns of one head; what the columns add to ``c``.

    With STORE_ROUNDED also the slots in the tile dtype.
    """
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    width: tl.constexpr = H * C
    pid = tl.program_id(0)
    block, h = pid % blocks, pid // blocks % H
    rows = (pid // (blocks * H)).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c, d = block * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, PADDED_D)
    valid_row, valid_c, valid_d = rows < num_rows, c < C, d < D
    tile: tl.constexpr = keys_ptr.dtype.element_ty
    at_weight = keys_ptr + d[:, None] * width + h * C + c[None, :]
    valid_weight = valid_d[:, None] & valid_c[None, :]
    weight = tl.load(at_weight, mask=valid_weight, other=0.0)
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    at_slots, valid = rows[:, None] * D + d[None, :], valid_row[:, None] & valid_d[None, :]
    slots = tl.load(slots_ptr + at_slots, mask=valid, other=0.0)
    normed = normed_rows(slots, d, norm_weight_ptr, norm_bias_ptr, D, EPS, tile)
    key = add_dot(tl.zeros([BLOCK_ROWS, BLOCK_C], slots.dtype), normed, weight, PRECISION)
    total = tl.sum(key * load_row(shift_ptr + c, valid_c), 1)
    tl.store(c_ptr + (rows * H + h) * blocks + block, total, mask=valid_row)
    at, stored = rows[:, None] * width + h * C + c[None, :], valid_row[:, None] & valid_c[None, :]
    tl.store(m_ptr + at, (key * load_row(scale_ptr + c, valid_c)).to(tile), mask=stored)
    if STORE_ROUNDED:
        once = valid & (rows < tl.where((block == 0) & (h == 0), num_rows, 0))[:, None]
        tl.store(rounded_ptr + at_slots, slots.to(tile), mask=once)
