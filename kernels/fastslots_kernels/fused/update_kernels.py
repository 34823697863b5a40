"""The slot update: weighted means, GRU, MLP, next keys. Mathematics: kernels/README.md.

Each kernel spreads rows and columns over programs and does little: the chain of launches is bound by latency.
Operands of products come from memory in the tile dtype, or are rows that a program has normalised: other
arithmetic on an operand would be done again by every warp. Row r is slot ``r % K`` of image ``r // K``.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import add_dot, ratio, sigmoid, tanh
from fastslots_kernels.fused.tiles import load_row, load_weight, normed_rows, sum_splits, tile_of


@triton.jit
def _average_kernel(
    sums_ptr,  # [B, S, sums_size]
    averaged_ptr,  # out [R, H C]: ū
    reduced_ptr,  # out [B, sums_size], or None
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    stop_ptr,  # int32, or None
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
):
    """``ū = U / Z ∘ γ + β``, 0 where Z is 0, of some rows and one head.

    If asked for, also U and Z summed over all splits, and zeros for their padding.
    """
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    W: tl.constexpr = H * C
    head = tl.program_id(0) % H
    rows = (tl.program_id(0) // H) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid_row = rows < num_rows
    image, slot = (rows // num_slots).to(tl.int64), rows % num_slots
    c = tl.arange(0, PADDED_C)
    valid_c = c < C
    valid = valid_row[:, None] & valid_c[None, :]
    at = slot[:, None] * W + head * C + c[None, :]
    at_total = num_slots * W + slot * H + head
    sums_ptr += image * NUM_SPLITS * sums_size
    sums = sum_splits(sums_ptr[:, None] + at, valid, NUM_SPLITS, sums_size)
    total = sum_splits(sums_ptr + at_total, valid_row, NUM_SPLITS, sums_size)

    tile: tl.constexpr = averaged_ptr.dtype.element_ty
    # 0 only for an image without a valid input. Compared so that NaN stays NaN.
    empty = (total == 0)[:, None]
    averaged = ratio(sums, tl.where(empty, 1.0, total[:, None]), tile)
    averaged = averaged * load_row(scale_ptr + c, valid_c) + load_row(shift_ptr + c, valid_c)
    averaged = tl.where(empty, 0.0, averaged).to(tile)
    at_averaged = averaged_ptr + (rows.to(tl.int64) * W)[:, None] + head * C + c[None, :]
    tl.store(at_averaged, averaged, mask=valid)
    if reduced_ptr is not None:
        reduced_ptr += image * sums_size
        tl.store(reduced_ptr[:, None] + at, sums, mask=valid)
        tl.store(reduced_ptr + at_total, total, mask=valid_row)
        first_pad = num_slots * (W + H)
        pad = first_pad + tl.arange(0, 16)
        last_row = valid_row & (slot == num_slots - 1) & (head == 0)
        padding = last_row[:, None] & (pad < sums_size)[None, :]
        zeros = tl.zeros([BLOCK_ROWS, 16], sums.dtype)
        tl.store(reduced_ptr[:, None] + pad[None, :], zeros, mask=padding)


@triton.jit
def _gru_kernel(
    averaged_ptr,  # [R, H C], tile dtype
    rounded_ptr,  # [R, D], slots in the tile dtype
    slots_ptr,  # [R, D]
    output_ptr,  # out [R, D]: s'
    gates_ptr,  # out [4, R, D]: reset, keep, candidate, from_hidden; or None
    value_weight_ptr,  # [3 D, H C]: W′
    hidden_weight_ptr,  # [3 D, D]: W_hh
    bias_ih_ptr,  # [3 D]
    bias_hh_ptr,  # [3 D]
    stop_ptr,  # int32, or None
    num_rows,
    W: tl.constexpr,  # H C
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``s' = (1 - keep) ∘ candidate + keep ∘ s``, if asked for the gates too, in a tile of rows and columns.

    ``reset`` and ``keep`` are ``σ(ū W′ᵀ + b_ih + s W_hhᵀ + b_hh)``, ``from_hidden = s W_hhᵀ + b_hh`` and
    ``candidate = tanh(ū W′ᵀ + b_ih + reset ∘ from_hidden)``, each with its third of the weights' rows.
    """
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    rows, d = tile_of(D, BLOCK_ROWS, BLOCK_D)
    valid_row, valid_d = rows < num_rows, d < D
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_D], slots_ptr.dtype.element_ty)
    ih, hh = bias_ih_ptr + d, bias_hh_ptr + d
    reset = zeros + load_row(ih, valid_d) + load_row(hh, valid_d)
    keep = zeros + load_row(ih + D, valid_d) + load_row(hh + D, valid_d)
    candidate = zeros + load_row(ih + 2 * D, valid_d)
    from_hidden = zeros + load_row(hh + 2 * D, valid_d)
    for first in tl.range(0, W, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        at = averaged_ptr + rows[:, None] * W + i[None, :]
        averaged = tl.load(at, mask=valid_row[:, None] & (i < W)[None, :], other=0.0)
        weight = load_weight(value_weight_ptr, d, valid_d, i, W)
        reset = add_dot(reset, averaged, weight, PRECISION)
        weight = load_weight(value_weight_ptr + D * W, d, valid_d, i, W)
        keep = add_dot(keep, averaged, weight, PRECISION)
        weight = load_weight(value_weight_ptr + 2 * D * W, d, valid_d, i, W)
        candidate = add_dot(candidate, averaged, weight, PRECISION)
    for first in tl.range(0, D, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        at = rounded_ptr + rows[:, None] * D + i[None, :]
        slots = tl.load(at, mask=valid_row[:, None] & (i < D)[None, :], other=0.0)
        weight = load_weight(hidden_weight_ptr, d, valid_d, i, D)
        reset = add_dot(reset, slots, weight, PRECISION)
        weight = load_weight(hidden_weight_ptr + D * D, d, valid_d, i, D)
        keep = add_dot(keep, slots, weight, PRECISION)
        weight = load_weight(hidden_weight_ptr + 2 * D * D, d, valid_d, i, D)
        from_hidden = add_dot(from_hidden, slots, weight, PRECISION)

    tile: tl.constexpr = rounded_ptr.dtype.element_ty
    reset, keep = sigmoid(reset, tile), sigmoid(keep, tile)
    candidate = tanh(candidate + reset * from_hidden, tile)
    at = rows[:, None] * D + d[None, :]
    valid = valid_row[:, None] & valid_d[None, :]
    slots = tl.load(slots_ptr + at, mask=valid, other=0.0)
    tl.store(output_ptr + at, (1 - keep) * candidate + keep * slots, mask=valid)
    if gates_ptr is not None:
        gate = num_rows.to(tl.int64) * D
        tl.store(gates_ptr + at, reset, mask=valid)
        tl.store(gates_ptr + gate + at, keep, mask=valid)
        tl.store(gates_ptr + 2 * gate + at, candidate, mask=valid)
        tl.store(gates_ptr + 3 * gate + at, from_hidden, mask=valid)


@triton.jit
def _hidden_kernel(
    output_ptr,  # [R, D]: s'
    hidden_ptr,  # out [R, M], tile dtype
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    mlp_0_ptr,  # [M, D]
    mlp_0_bias_ptr,  # [M]
    stop_ptr,  # int32, or None
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PADDED_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``max(LNₘ(s') W₀ᵀ + b₀, 0)``: the MLP's hidden units, in one tile of rows and of units."""
    rows, unit = tile_of(M, BLOCK_ROWS, BLOCK_M)
    valid_row, valid_unit, d = rows < num_rows, unit < M, tl.arange(0, PADDED_D)
    # Does not depend on the launch before: on its way while the flag is.
    weight = load_weight(mlp_0_ptr, unit, valid_unit, d, D)
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    valid = valid_row[:, None] & (d < D)[None, :]
    output = tl.load(output_ptr + rows[:, None] * D + d[None, :], mask=valid, other=0.0)
    tile: tl.constexpr = hidden_ptr.dtype.element_ty
    normed = normed_rows(output, d, norm_weight_ptr, norm_bias_ptr, D, NORM_MLP_EPS, tile)
    zeros = tl.zeros([BLOCK_ROWS, BLOCK_M], output.dtype)
    hidden = add_dot(zeros, normed, weight, PRECISION)
    hidden = tl.maximum(hidden + load_row(mlp_0_bias_ptr + unit, valid_unit), 0.0).to(tile)
    at = hidden_ptr + rows[:, None] * M + unit[None, :]
    tl.store(at, hidden, mask=valid_row[:, None] & valid_unit[None, :])


@triton.jit
def _new_kernel(
    hidden_ptr,  # [R, M], tile dtype
    output_ptr,  # [R, D]: s'
    slots_ptr,  # [R, D]: s
    new_ptr,  # out [R, D]: s'', may be slots_ptr
    residual_ptr,  # out [R, blocks of columns, 2], or None
    mlp_2_ptr,  # [D, M]
    mlp_2_bias_ptr,  # [D]
    stop_ptr,  # int32, or None
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``s'' = s' + hidden W₂ᵀ + b₂``, the new slots, in one tile of rows and columns.

    If asked for, also ``Σ (s'' - s)²`` and ``Σ s''²`` of every row and block of columns.
    """
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    rows, d = tile_of(D, BLOCK_ROWS, BLOCK_D)
    valid_row, valid_d = rows < num_rows, d < D
    new = tl.zeros([BLOCK_ROWS, BLOCK_D], output_ptr.dtype.element_ty)
    for first in tl.range(0, M, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        at = hidden_ptr + rows[:, None] * M + i[None, :]
        hidden = tl.load(at, mask=valid_row[:, None] & (i < M)[None, :], other=0.0)
        new = add_dot(new, hidden, load_weight(mlp_2_ptr, d, valid_d, i, M), PRECISION)
    at = rows[:, None] * D + d[None, :]
    valid = valid_row[:, None] & valid_d[None, :]
    output = tl.load(output_ptr + at, mask=valid, other=0.0)
    new += output + load_row(mlp_2_bias_ptr + d, valid_d)
    if residual_ptr is not None:
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
    m_ptr,  # out [R, H C]
    bias_ptr,  # out [R, H, blocks of columns]: c is their sum
    rounded_ptr,  # out [R, D]: slots in the tile dtype, or None
    key_weight_ptr,  # [D, H C]: G
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    stop_ptr,  # int32, or None
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PADDED_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``m = g ∘ γ`` and ``c = g · β`` with ``g = LNₛ(s) G``, of one tile of rows and of columns of one head.

    What a block adds to c is stored apart: another program could not add to it in a fixed order.
    """
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    W: tl.constexpr = H * C
    pid = tl.program_id(0)
    block, head = pid % blocks, pid // blocks % H
    rows = (pid // (blocks * H)).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c, d = block * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, PADDED_D)
    valid_row, valid_c, valid_d = rows < num_rows, c < C, d < D
    tile: tl.constexpr = key_weight_ptr.dtype.element_ty
    at_weight = key_weight_ptr + d[:, None] * W + head * C + c[None, :]
    valid_weight = valid_d[:, None] & valid_c[None, :]
    weight = tl.load(at_weight, mask=valid_weight, other=0.0)
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    at_slots, valid = rows[:, None] * D + d[None, :], valid_row[:, None] & valid_d[None, :]
    slots = tl.load(slots_ptr + at_slots, mask=valid, other=0.0)
    normed = normed_rows(slots, d, norm_weight_ptr, norm_bias_ptr, D, NORM_SLOTS_EPS, tile)
    key = add_dot(tl.zeros([BLOCK_ROWS, BLOCK_C], slots.dtype), normed, weight, PRECISION)
    total = tl.sum(key * load_row(shift_ptr + c, valid_c), 1)
    tl.store(bias_ptr + (rows * H + head) * blocks + block, total, mask=valid_row)
    at, stored = rows[:, None] * W + head * C + c[None, :], valid_row[:, None] & valid_c[None, :]
    tl.store(m_ptr + at, (key * load_row(scale_ptr + c, valid_c)).to(tile), mask=stored)
    if rounded_ptr is not None:
        once = valid & (rows < tl.where((block == 0) & (head == 0), num_rows, 0))[:, None]
        tl.store(rounded_ptr + at_slots, slots.to(tile), mask=once)
