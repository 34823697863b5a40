"""Kernels of the slot update's backward: back to the gates of the GRU, and through the products they are of.

Each has a program for every head beside that for the slots. Rows: see `mlp_backward_kernels`.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import divide, layer_norm, layer_norm_backward
from fastslots_kernels.fused.keys_backward_kernels import keys_again
from fastslots_kernels.fused.tiles import load_row, row_product, rows_repeated


@triton.jit
def gru_backward(
    tile_index,
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]: reset, keep, candidate, from_hidden
    d_hidden_ptr,  # [R, M]
    mlp_0_ptr,  # [M, D]: W₀
    norm_weight_ptr,  # [D]
    d_normed_ptr,  # out [R, D]: that of LNₘ(s')
    d_input_gates_ptr,  # out [R, 3 D]
    d_hidden_gates_ptr,  # out [R, 3 D]
    d_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS]
    num_rows,
    D: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_NORM_MLP_WEIGHT: tl.constexpr,
    AT_NORM_MLP_BIAS: tl.constexpr,
    AT_GRU_BIAS_IH: tl.constexpr,
    AT_GRU_BIAS_HH: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``ds'`` is ``ds''`` and what LNₘ leaves of ``dh W₀``; from it the gradients of the gates' arguments.

        d_candidate = ds' ∘ (1 - keep) ∘ (1 - candidate²)         d_from_hidden = d_candidate ∘ reset
        d_keep = ds' ∘ (s - candidate) ∘ keep ∘ (1 - keep)
        d_reset = d_candidate ∘ from_hidden ∘ reset ∘ (1 - reset)

    Of ``ds`` the part ``ds' ∘ keep``, of vectors those of LNₘ and the GRU's biases; for one tile.
    """
    tile: tl.constexpr = mlp_0_ptr.dtype.element_ty
    rows, valid_row = rows_repeated(tile_index, num_rows, BLOCK_ROWS)
    d = tl.arange(0, PADDED_D)
    valid_d = d < D
    there = valid_d[None, :]
    valid = valid_row[:, None] & there
    at = rows[:, None] * D + d[None, :]
    gate = num_rows.to(tl.int64) * D

    # On their way while the product is made.
    d_new = tl.load(d_new_ptr + at, mask=valid, other=0.0)
    slots = tl.load(slots_ptr + at, mask=there, other=0.0)
    reset = tl.load(gates_ptr + at, mask=there, other=0.0)
    keep = tl.load(gates_ptr + gate + at, mask=there, other=0.0)
    candidate = tl.load(gates_ptr + 2 * gate + at, mask=there, other=0.0)
    from_hidden = tl.load(gates_ptr + 3 * gate + at, mask=there, other=0.0)
    norm_weight = load_row(norm_weight_ptr + d, valid_d)

    d_normed = row_product(
        rows, valid_row, d_hidden_ptr, mlp_0_ptr + d, valid_d,
        M, D, slots.dtype, PRECISION, CHUNK, STAGES,
    )  # fmt: skip
    # By way of memory to the threads that hold the rest of a row: else all of the rest would go to those of
    # the product, with a barrier or two for each tensor.
    tl.store(d_normed_ptr + at, d_normed, mask=valid)
    tl.debug_barrier()
    d_normed = tl.load(d_normed_ptr + at, mask=valid, other=0.0)
    normed, rstd = layer_norm((1 - keep) * candidate + keep * slots, there, D, EPS)
    d_output = d_new + layer_norm_backward(d_normed * norm_weight, normed, rstd, D)
    tl.store(d_slots_ptr + at, d_output * keep, mask=valid)
    d_candidate = d_output * (1 - keep) * (1 - candidate * candidate)
    d_keep = d_output * (slots - candidate) * keep * (1 - keep)
    d_reset = d_candidate * from_hidden * reset * (1 - reset)
    d_from_hidden = d_candidate * reset

    gates_at = rows[:, None] * (3 * D) + d[None, :]
    reset_tile, keep_tile = d_reset.to(tile), d_keep.to(tile)
    tl.store(d_input_gates_ptr + gates_at, reset_tile, mask=valid)
    tl.store(d_input_gates_ptr + gates_at + D, keep_tile, mask=valid)
    tl.store(d_input_gates_ptr + gates_at + 2 * D, d_candidate.to(tile), mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at, reset_tile, mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at + D, keep_tile, mask=valid)
    tl.store(d_hidden_gates_ptr + gates_at + 2 * D, d_from_hidden.to(tile), mask=valid)

    vectors = vectors_ptr + tile_index.to(tl.int64) * VECTORS + d
    sum_reset, sum_keep = tl.sum(d_reset, 0), tl.sum(d_keep, 0)
    tl.store(vectors + AT_NORM_MLP_WEIGHT, tl.sum(d_normed * normed, 0), mask=valid_d)
    tl.store(vectors + AT_NORM_MLP_BIAS, tl.sum(d_normed, 0), mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_IH, sum_reset, mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_IH + D, sum_keep, mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_IH + 2 * D, tl.sum(d_candidate, 0), mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_HH, sum_reset, mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_HH + D, sum_keep, mask=valid_d)
    tl.store(vectors + AT_GRU_BIAS_HH + 2 * D, tl.sum(d_from_hidden, 0), mask=valid_d)


@triton.jit
def _gru_backward_kernel(
    d_new_ptr,  # [R, D]
    slots_ptr,  # [R, D]
    gates_ptr,  # [4, R, D]
    d_hidden_ptr,  # [R, M]
    mlp_0_ptr,  # [M, D]: W₀
    norm_mlp_weight_ptr,  # [D]
    normed_slots_ptr,  # [R, D]: s̃
    key_weight_ptr,  # [D, H C]: G
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    d_normed_ptr,  # out [R, D]
    d_input_gates_ptr,  # out [R, 3 D]
    d_hidden_gates_ptr,  # out [R, 3 D]
    d_slots_ptr,  # out [R, D]
    vectors_ptr,  # out [tiles, VECTORS]
    m_ptr,  # out [R, H C]
    bias_ptr,  # out [R, H]
    plain_ptr,  # out [R, H C]: g
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_NORM_MLP_WEIGHT: tl.constexpr,
    AT_NORM_MLP_BIAS: tl.constexpr,
    AT_GRU_BIAS_IH: tl.constexpr,
    AT_GRU_BIAS_HH: tl.constexpr,
    NORM_MLP_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
    PADDED_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile: back through the gates or, as that waits for nothing, one head's keys again.

    Formulas: `gru_backward`, `keys_again`.
    """
    pid, part = tl.program_id(0) // (H + 1), tl.program_id(0) % (H + 1)
    if part == H:
        gru_backward(
            pid, d_new_ptr, slots_ptr, gates_ptr, d_hidden_ptr, mlp_0_ptr, norm_mlp_weight_ptr,
            d_normed_ptr, d_input_gates_ptr, d_hidden_gates_ptr, d_slots_ptr, vectors_ptr, num_rows,
            D, M, VECTORS, AT_NORM_MLP_WEIGHT, AT_NORM_MLP_BIAS, AT_GRU_BIAS_IH, AT_GRU_BIAS_HH,
            NORM_MLP_EPS, PRECISION, BLOCK_ROWS, PADDED_D, CHUNK, STAGES,
        )  # fmt: skip
    else:
        keys_again(
            pid, part, normed_slots_ptr, key_weight_ptr, scale_ptr, shift_ptr, m_ptr, bias_ptr,
            plain_ptr, num_rows, C, D, H, PRECISION, BLOCK_ROWS, PADDED_C, CHUNK, STAGES,
        )  # fmt: skip


@triton.jit
def mean_backward(
    rows,
    valid_row,
    head,
    d_input_gates_ptr,  # [R, 3 D]
    value_weight_ptr,  # [3 D, H C]: W′
    sums_ptr,  # [B, 1, sums_size]
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    d_sums_ptr,  # out [B, 1, sums_size], but for its padding
    averaged_ptr,  # out [R, H C]: ū
    vectors_ptr,  # out [VECTORS]
    num_slots,
    sums_size,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    AT_NORM_INPUTS_WEIGHT: tl.constexpr,
    AT_NORM_INPUTS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PADDED_C: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``dū = d_input_gates W′``; ``dU = dū ∘ γ / Z``, ``dZ = -dU · U / Z``, of one head.

    ``dγ = Σ dū ∘ U / Z`` and ``dβ = Σ dū`` of it. Where Z is 0, all are 0.
    """
    c = tl.arange(0, PADDED_C)
    valid_c = c < C
    slot = rows.to(tl.int32) % num_slots  # a division of 64 bits is long
    first = (rows.to(tl.int32) // num_slots).to(tl.int64) * sums_size
    total_at = first + num_slots * H * C + slot * H + head
    at = (first + (slot * H + head) * C)[:, None] + c[None, :]
    # On their way while the product is made.
    total = tl.load(sums_ptr + total_at)[:, None]
    sums = tl.load(sums_ptr + at, mask=valid_c[None, :], other=0.0)
    scale, shift = load_row(scale_ptr + c, valid_c), load_row(shift_ptr + c, valid_c)

    d_averaged = row_product(
        rows, valid_row, d_input_gates_ptr, value_weight_ptr + head * C + c, valid_c,
        3 * D, H * C, sums.dtype, PRECISION, CHUNK, STAGES,
    )  # fmt: skip
    filled = total != 0
    inverse = tl.where(filled, divide(1.0, tl.where(filled, total, 1.0)), 0.0)
    mean = sums * inverse
    d_averaged = tl.where(filled, d_averaged, 0.0)
    valid = valid_row[:, None] & valid_c[None, :]
    averaged = tl.where(filled, mean * scale + shift, 0.0).to(averaged_ptr.dtype.element_ty)
    tl.store(averaged_ptr + ((rows * H + head) * C)[:, None] + c[None, :], averaged, mask=valid)
    d_sums = d_averaged * scale * inverse
    tl.store(d_sums_ptr + at, d_sums, mask=valid)
    tl.store(d_sums_ptr + total_at, -tl.sum(d_sums * mean, 1), mask=valid_row)
    vectors_ptr += head * C + c
    tl.store(vectors_ptr + AT_NORM_INPUTS_WEIGHT, tl.sum(d_averaged * mean, 0), mask=valid_c)
    tl.store(vectors_ptr + AT_NORM_INPUTS_BIAS, tl.sum(d_averaged, 0), mask=valid_c)


@triton.jit
def _gates_backward_kernel(
    d_input_gates_ptr,  # [R, 3 D]
    d_hidden_gates_ptr,  # [R, 3 D]
    value_weight_ptr,  # [3 D, H C]: W′
    hidden_weight_ptr,  # [3 D, D]: W_hh
    sums_ptr,  # [B, 1, sums_size]
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    d_slots_ptr,  # in and out [R, D]
    d_sums_ptr,  # out [B, 1, sums_size], but for its padding
    averaged_ptr,  # out [R, H C]: ū
    vectors_ptr,  # out [tiles, VECTORS]
    num_rows,
    num_slots,
    sums_size,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_NORM_INPUTS_WEIGHT: tl.constexpr,
    AT_NORM_INPUTS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
    PADDED_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile: ``ds += d_hidden_gates W_hh``, or back to one head's U and Z: `mean_backward`.

    Vectors of the inputs' LayerNorm lack what comes through the keys until `_keys_backward_kernel` adds it.
    """
    pid, part = tl.program_id(0) // (H + 1), tl.program_id(0) % (H + 1)
    rows, valid_row = rows_repeated(pid, num_rows, BLOCK_ROWS)
    if part == H:
        d = tl.arange(0, PADDED_D)
        at = d_slots_ptr + rows[:, None] * D + d[None, :]
        valid = valid_row[:, None] & (d < D)[None, :]
        d_slots = tl.load(at, mask=valid, other=0.0)
        d_slots += row_product(
            rows, valid_row, d_hidden_gates_ptr, hidden_weight_ptr + d, d < D,
            3 * D, D, d_slots.dtype, PRECISION, CHUNK, STAGES,
        )  # fmt: skip
        tl.store(at, d_slots, mask=valid)
    else:
        mean_backward(
            rows, valid_row, part, d_input_gates_ptr, value_weight_ptr, sums_ptr, scale_ptr,
            shift_ptr, d_sums_ptr, averaged_ptr, vectors_ptr + pid.to(tl.int64) * VECTORS,
            num_slots, sums_size, C, D, H, AT_NORM_INPUTS_WEIGHT, AT_NORM_INPUTS_BIAS,
            PRECISION, PADDED_C, CHUNK, STAGES,
        )  # fmt: skip
