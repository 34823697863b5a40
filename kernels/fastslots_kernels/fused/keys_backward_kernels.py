"""The slots' keys once more for the backward, and the kernel of theirs. Rows: see `mlp_backward_kernels`."""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import layer_norm, layer_norm_backward
from fastslots_kernels.fused.tiles import load_row, row_product, rows_repeated, sum_splits


@triton.jit
def keys_again(
    tile_index,
    head,
    normed_slots_ptr,  # [R, D]: s̃
    key_weight_ptr,  # [D, H C]: G
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    m_ptr,  # out [R, H C]
    bias_ptr,  # out [R, H]
    plain_ptr,  # out [R, H C]
    num_rows,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The keys of one tile and one head: ``g = s̃ G``, ``m = g ∘ γ`` and ``c = g · β``."""
    rows, valid_row = rows_repeated(tile_index, num_rows, BLOCK_ROWS)
    c = tl.arange(0, PADDED_C)
    valid_c = c < C
    scale, shift = load_row(scale_ptr + c, valid_c), load_row(shift_ptr + c, valid_c)
    plain = row_product(
        rows, valid_row, normed_slots_ptr, key_weight_ptr + head * C + c, valid_c,
        D, H * C, scale.dtype, PRECISION, CHUNK, STAGES,
    )  # fmt: skip
    at = ((rows * H + head) * C)[:, None] + c[None, :]
    valid = valid_row[:, None] & valid_c[None, :]
    tl.store(plain_ptr + at, plain, mask=valid)
    tl.store(m_ptr + at, (plain * scale).to(m_ptr.dtype.element_ty), mask=valid)
    tl.store(bias_ptr + rows * H + head, tl.sum(plain * shift, 1), mask=valid_row)


@triton.jit
def _keys_backward_kernel(
    d_keys_ptr,  # [B, S, sums_size]: dm [K, H C], then dc [K, H]; their sum over S counts
    plain_ptr,  # [R, H C]: g
    slots_ptr,  # [R, D]
    key_weight_ptr,  # [D, H C]: G
    scale_ptr,  # [C]: γ
    shift_ptr,  # [C]: β
    norm_weight_ptr,  # [D]
    d_plain_ptr,  # out [R, H C]
    d_slots_ptr,  # in and out [R, D]
    vectors_ptr,  # in and out [tiles, VECTORS]
    num_rows,
    num_slots,
    sums_size,
    NUM_SPLITS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    VECTORS: tl.constexpr,
    AT_NORM_INPUTS_WEIGHT: tl.constexpr,
    AT_NORM_INPUTS_BIAS: tl.constexpr,
    AT_NORM_SLOTS_WEIGHT: tl.constexpr,
    AT_NORM_SLOTS_BIAS: tl.constexpr,
    NORM_SLOTS_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PADDED_C: tl.constexpr,
    PADDED_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``dg = dm ∘ γ + dc β``, and to ``ds`` is added what ``dg Gᵀ`` is before LNₛ; of one tile.

    ``dγ += Σ dm ∘ g`` and ``dβ += Σ dc g``, for every head; of vectors also those of LNₛ.
    """
    W: tl.constexpr = H * C
    pid = tl.program_id(0)
    rows, valid_row = rows_repeated(pid, num_rows, BLOCK_ROWS)
    slot = rows.to(tl.int32) % num_slots  # a division of 64 bits is long
    image = (rows.to(tl.int32) // num_slots).to(tl.int64)
    vectors_ptr += pid.to(tl.int64) * VECTORS
    d = tl.arange(0, PADDED_D)
    valid_d = d < D
    valid = valid_row[:, None] & valid_d[None, :]
    at = rows[:, None] * D + d[None, :]
    slots = tl.load(slots_ptr + at, mask=valid_d[None, :], other=0.0)
    norm_weight = load_row(norm_weight_ptr + d, valid_d)

    c = tl.arange(0, PADDED_C)
    valid_c = c < C
    both = valid_row[:, None] & valid_c[None, :]
    scale, shift = load_row(scale_ptr + c, valid_c), load_row(shift_ptr + c, valid_c)
    d_keys_ptr += image * NUM_SPLITS * sums_size
    for head in range(H):
        plain_at = ((rows * H + head) * C)[:, None] + c[None, :]
        plain = tl.load(plain_ptr + plain_at, mask=both, other=0.0)
        vectors = vectors_ptr + head * C + c
        d_scale = tl.load(vectors + AT_NORM_INPUTS_WEIGHT, mask=valid_c, other=0.0)
        d_shift = tl.load(vectors + AT_NORM_INPUTS_BIAS, mask=valid_c, other=0.0)
        bias_at = d_keys_ptr + num_slots * W + slot * H + head
        d_bias = sum_splits(bias_at, valid_row, NUM_SPLITS, sums_size)[:, None]
        m_at = (d_keys_ptr + (slot * H + head) * C)[:, None] + c[None, :]
        d_m = sum_splits(m_at, both, NUM_SPLITS, sums_size)
        d_plain = (d_m * scale + d_bias * shift).to(d_plain_ptr.dtype.element_ty)
        tl.store(d_plain_ptr + plain_at, d_plain, mask=both)
        d_scale += tl.sum(d_m * plain, 0)
        tl.store(vectors + AT_NORM_INPUTS_WEIGHT, d_scale, mask=valid_c)
        d_shift += tl.sum(d_bias * plain, 0)
        tl.store(vectors + AT_NORM_INPUTS_BIAS, d_shift, mask=valid_c)
    # Below, rows are read by other threads than those that wrote them.
    tl.debug_barrier()

    d_slots = tl.load(d_slots_ptr + at, mask=valid, other=0.0)
    d_normed = row_product(
        rows, valid_row, d_plain_ptr, key_weight_ptr + d * W, valid_d,
        W, 1, slots.dtype, PRECISION, CHUNK, STAGES,
    )  # fmt: skip
    normed, rstd = layer_norm(slots, valid_d[None, :], D, NORM_SLOTS_EPS)
    d_slots += layer_norm_backward(d_normed * norm_weight, normed, rstd, D)
    tl.store(d_slots_ptr + at, d_slots, mask=valid)
    vectors = vectors_ptr + d
    tl.store(vectors + AT_NORM_SLOTS_WEIGHT, tl.sum(d_normed * normed, 0), mask=valid_d)
    tl.store(vectors + AT_NORM_SLOTS_BIAS, tl.sum(d_normed, 0), mask=valid_d)
