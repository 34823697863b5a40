"""The backward of `attend` in one pass over the inputs (kernels/README.md#backward-of-one-step)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.attend import weight_scale
from fastslots_kernels.fused.inputs import image_rows, load_normalized
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import Plan, split_size
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.tiles import add_dot, mean_of, softmax, wait_for_inputs


@triton.jit
def _attend_backward_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] int32, any strides
    m_ptr,  # [B, V, C]
    c_ptr,  # [B, V]
    d_sums_ptr,  # [B, sums_size]
    d_attn_ptr,  # [B, N, K], any strides
    d_inputs_ptr,  # [B, N, C], any strides
    d_keys_ptr,  # [B, S, sums_size]
    num_inputs,
    num_virtual,
    num_splits,
    split_size,
    sums_size,
    stride_b,
    stride_n,
    stride_c,
    mask_stride_b,
    mask_stride_n,
    d_attn_stride_b,
    d_attn_stride_n,
    d_attn_stride_k,
    d_stride_b,
    d_stride_n,
    d_stride_c,
    SIZE: tl.constexpr,  # C
    HEADS: tl.constexpr,  # H
    EPSILON: tl.constexpr,
    SCALE: tl.constexpr,  # of the weights
    NORM_EPS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_D_ATTN: tl.constexpr,
    NEED_INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,  # columns of d_inputs made at once
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One program: one split of the inputs of one image."""
    wait_for_inputs(DEPENDENT)
    pid = tl.program_id(0)
    b, split = (pid // num_splits).to(tl.int64), pid % num_splits
    first = split * split_size
    last = tl.minimum(first + split_size, num_inputs)
    c, v = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_V)
    is_slot = v < num_virtual
    kept = is_slot[:, None] & (c < SIZE)[None, :]
    image_ptr, d_image_ptr = inputs_ptr + b * stride_b, d_inputs_ptr + b * d_stride_b
    m_ptr += b * num_virtual * SIZE
    d_sums_ptr += b * sums_size
    d_keys_ptr += pid.to(tl.int64) * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = d_sums_ptr.dtype.element_ty

    within = v[:, None] * SIZE + c[None, :]
    m = tl.load(m_ptr + within, mask=kept, other=0.0)
    d_sums = tl.load(d_sums_ptr + within, mask=kept, other=0.0).to(tile)
    m_mean = mean_of(tl.sum(m.to(acc), 1), SIZE)[None, :]
    d_sums_mean = mean_of(tl.sum(d_sums.to(acc), 1), SIZE)[None, :]
    # Side by side, so that one product makes x̃ · m and x̃ · dU: two would hold x̃ in registers in between.
    both = tl.reshape(tl.permute(tl.join(m, d_sums), 2, 0, 1), [2 * BLOCK_V, BLOCK_C])
    both = tl.trans(both)
    bias = tl.load(c_ptr + b * num_virtual + v, mask=is_slot, other=float("-inf"))
    d_total = tl.load(d_sums_ptr + num_virtual * SIZE + v, mask=is_slot, other=0.0)
    d_m = tl.zeros([BLOCK_V, BLOCK_C], acc)
    d_c = tl.zeros([BLOCK_N, BLOCK_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(
            mask_ptr, b, start, last, mask_stride_b, mask_stride_n, HAS_MASK, BLOCK_N
        )
        normed, mean, rest, rstd = load_normalized(
            image_ptr, n, valid, c, stride_n, stride_c, tile, acc, SIZE, NORM_EPS
        )
        x = normed.to(tile)
        present = valid[:, None] & is_slot[None, :]
        along = add_dot(tl.zeros([BLOCK_N, 2 * BLOCK_V], acc), x, both, PRECISION)
        along = tl.permute(tl.reshape(along, [BLOCK_N, 2, BLOCK_V]), 0, 2, 1)
        along_m, along_d_sums = tl.split(along)
        attn = softmax(along_m + bias[None, :], tile)
        d_weights = along_d_sums + d_total[None, :]
        if HAS_D_ATTN:
            pointers = d_attn_ptr + b * d_attn_stride_b + n[:, None] * d_attn_stride_n
            pointers += (v // HEADS).to(tl.int64)[None, :] * d_attn_stride_k
            d_weights += tl.load(pointers, mask=present, other=0.0).to(acc)
        d_logits = attn * (d_weights - tl.sum(attn * d_weights, 1)[:, None])
        d_logits = tl.where(present, d_logits, 0.0)
        d_c += d_logits
        d_logits = d_logits.to(tile)
        d_m = add_dot(d_m, tl.trans(d_logits), x, PRECISION)

        if NEED_INPUTS:
            weights = tl.where(present, (attn + EPSILON) * SCALE, 0.0).to(tile)
            # Both means of dx̃ over the columns that the LayerNorm's backward takes, from what is at hand.
            a, d_l = weights.to(acc) / SCALE, d_logits.to(acc)
            d_mean = tl.sum(a * d_sums_mean + d_l * m_mean, 1)
            d_along = mean_of(tl.sum(a * along_d_sums + d_l * along_m, 1), SIZE)
            for chunk in tl.static_range(0, SIZE, CHUNK):
                cc = chunk + tl.arange(0, CHUNK)
                columns = (cc < SIZE)[None, :]
                within_chunk = v[:, None] * SIZE + cc[None, :]
                kept_chunk = is_slot[:, None] & columns
                m_chunk = tl.load(m_ptr + within_chunk, mask=kept_chunk, other=0.0)
                d_chunk = tl.load(d_sums_ptr + within_chunk, mask=kept_chunk, other=0.0)
                d_x = add_dot(tl.zeros([BLOCK_N, CHUNK], acc), weights, d_chunk.to(tile), PRECISION)
                d_x = add_dot(d_x / SCALE, d_logits, m_chunk, PRECISION)
                pointers = image_ptr + n[:, None] * stride_n + cc[None, :].to(tl.int64) * stride_c
                x_chunk = tl.load(pointers, mask=valid[:, None] & columns, other=0.0).to(acc)
                x_chunk = (x_chunk - mean[:, None] - rest[:, None]) * rstd[:, None]
                d_x = (d_x - d_mean[:, None] - x_chunk * d_along[:, None]) * rstd[:, None]
                d_pointers = d_image_ptr + n[:, None] * d_stride_n
                d_pointers += cc[None, :].to(tl.int64) * d_stride_c
                d_x = d_x.to(d_inputs_ptr.dtype.element_ty)
                tl.store(d_pointers, d_x, mask=(n < last)[:, None] & columns)

    tl.store(d_keys_ptr + within, d_m, mask=kept)
    tl.store(d_keys_ptr + num_virtual * SIZE + v, tl.sum(d_c, 0), mask=is_slot)


def attend_backward(
    inputs: Tensor,
    mask: Tensor | None,
    m: Tensor,
    c: Tensor,
    d_sums: Tensor,
    d_attn: Tensor | None,
    d_inputs: Tensor | None,
    d_keys: Tensor,
    sizes: Sizes,
    plan: Plan,
    *,
    epsilon: float,
    norm_eps: float,
    precision: str,
) -> None:
    """Writes the gradients of the inputs and, for every split, of ``m`` and ``c``.

    Args:
        inputs: ``[B, N, C]``, any strides.
        mask: ``[B, N]`` int32, any strides; 0 where an input is not valid.
        m: ``[B K, H C]``, tile dtype.
        c: ``[B K, H]``.
        d_sums: Of ``U`` and ``Z``, ``[B, 1, sums_size]``.
        d_attn: Of the softmax summed over heads, ``[B, N, K]``, any strides, or None for zero.
        d_inputs: ``[B, N, C]``, or None if not needed.
        d_keys: ``[B, S, sums_size]``; S is the number of splits.
        sizes: Of the call.
        plan: Of `backward_plan`.
        epsilon: As in the forward.
        norm_eps: Of the inputs' LayerNorm.
        precision: Of products of float32: "ieee" or "tf32".
    """
    if not sizes.batch:
        return
    splits = d_keys.shape[1]
    rows, d_in = inputs if mask is None else mask, inputs if d_inputs is None else d_inputs
    launch(
        _attend_backward_kernel,
        (sizes.batch * splits,),
        inputs,
        inputs if mask is None else mask,
        m,
        c,
        d_sums,
        d_sums if d_attn is None else d_attn,
        d_in,
        d_keys,
        sizes.num_inputs,
        sizes.virtual,
        splits,
        split_size(sizes.num_inputs, splits, plan),
        sizes.sums_size,
        *inputs.stride(),
        *rows.stride()[:2],
        *(d_sums if d_attn is None else d_attn).stride(),
        *d_in.stride(),
        SIZE=sizes.input_size,
        HEADS=sizes.num_heads,
        EPSILON=epsilon,
        SCALE=weight_scale(m.dtype),
        NORM_EPS=norm_eps,
        HAS_MASK=mask is not None,
        HAS_D_ATTN=d_attn is not None,
        NEED_INPUTS=d_inputs is not None,
        PRECISION=precision,
        BLOCK_N=plan.rows,
        BLOCK_C=padded(sizes.input_size),
        BLOCK_V=padded(sizes.virtual),
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        num_warps=plan.warps,
    )
