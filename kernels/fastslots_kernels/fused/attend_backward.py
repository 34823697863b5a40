"""The backward of `attend` in one pass over the inputs (kernels/README.md#backward-of-one-step)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.inputs import (
    appended,
    image_rows,
    inverse_deviation,
    load_centred,
    normalized,
    replaced,
    store_chunk,
)
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import Plan, split_size
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.tiles import add_dot, mean_of, softmax


@triton.jit
def _beside(a, b):
    """``[a; b]``: rows of one, then of the other."""
    return tl.reshape(tl.permute(tl.join(a, b), 2, 0, 1), [2 * a.shape[0], a.shape[1]])


@triton.jit
def _across(a, b):
    """``[a, b]``: columns of one, then of the other."""
    return tl.trans(_beside(tl.trans(a), tl.trans(b)))


@triton.jit
def _apart(a):
    """The left and the right half of the columns."""
    halves = tl.reshape(a, [a.shape[0], 2, a.shape[1] // 2])
    return tl.split(tl.permute(halves, 0, 2, 1))


@triton.jit
def _attend_backward_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] of `mask_dtype`, any strides
    m_ptr,  # [B, V, C]
    c_ptr,  # [B, V]
    sums_ptr,  # [B, sums_size]
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
    SCALE: tl.constexpr,  # of the weights, which are divided by Z if it is not 1
    NORM_EPS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_D_ATTN: tl.constexpr,
    NEED_INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,  # columns of d_inputs made at once
    STAGES: tl.constexpr,
):
    """One program: one split of the inputs of one image."""
    pid = tl.program_id(0)
    b, split = (pid // num_splits).to(tl.int64), pid % num_splits
    first = split * split_size
    last = tl.minimum(first + split_size, num_inputs)
    v = tl.arange(0, BLOCK_V)
    is_slot = v < num_virtual
    image_ptr, d_image_ptr = inputs_ptr + b * stride_b, d_inputs_ptr + b * d_stride_b
    m_ptr += b * num_virtual * SIZE
    sums_ptr += b * sums_size
    d_sums_ptr += b * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = d_sums_ptr.dtype.element_ty

    if SCALE != 1.0:
        # dU is as large as 1 / Z, which float16 cannot hold where no input chooses a slot: products take
        # A / Z and Z dU in place of A and dU.
        total = tl.load(sums_ptr + num_virtual * SIZE + v, mask=is_slot, other=1.0)
        total = tl.where(total > 0, total, 1.0)
    c = tl.arange(0, CHUNK)
    both, sums_of_m, sums_of_d = (), tl.zeros([BLOCK_V], acc), tl.zeros([BLOCK_V], acc)
    d_m = ()
    for first_c in tl.static_range(0, SIZE, CHUNK):
        within = v[:, None] * SIZE + first_c + c[None, :]
        kept = is_slot[:, None] & (first_c + c < SIZE)[None, :]
        m = tl.load(m_ptr + within, mask=kept, other=0.0)
        d_sums = tl.load(d_sums_ptr + within, mask=kept, other=0.0)
        if SCALE != 1.0:
            d_sums = d_sums * total[:, None]
        d_sums = d_sums.to(tile)
        sums_of_m += tl.sum(m.to(acc), 1)
        sums_of_d += tl.sum(d_sums.to(acc), 1)
        # Side by side, so that one product makes x̃ · m and x̃ · dU.
        both = appended(both, _beside(d_sums, m))
        d_m = appended(d_m, tl.zeros([CHUNK, BLOCK_V], acc))
    means = mean_of(_beside(sums_of_d[:, None], sums_of_m[:, None]), SIZE)
    means = tl.reshape(means, [1, 2 * BLOCK_V])
    bias = tl.load(c_ptr + b * num_virtual + v, mask=is_slot, other=float("-inf"))
    d_total = tl.load(d_sums_ptr + num_virtual * SIZE + v, mask=is_slot, other=0.0)
    d_c = tl.zeros([BLOCK_N, BLOCK_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(
            mask_ptr, b, start, last, mask_stride_b, mask_stride_n, HAS_MASK, BLOCK_N
        )
        x = load_centred(image_ptr, n, valid, stride_n, stride_c, tile, acc, SIZE, CHUNK)
        rstd = inverse_deviation(x, valid, tile, SIZE, NORM_EPS)
        x = normalized(x, rstd, tile)
        present = valid[:, None] & is_slot[None, :]
        along = tl.zeros([BLOCK_N, 2 * BLOCK_V], acc)
        for i in tl.static_range(len(x)):
            along = add_dot(along, x[i], tl.trans(both[i]), PRECISION)
        along_d_sums, along_m = _apart(along)
        attn = softmax(along_m + bias[None, :], tile)
        if SCALE != 1.0:
            along_d_sums = along_d_sums / total[None, :]
        d_weights = along_d_sums + d_total[None, :]
        if HAS_D_ATTN:
            pointers = d_attn_ptr + b * d_attn_stride_b + n[:, None] * d_attn_stride_n
            pointers += (v // HEADS).to(tl.int64)[None, :] * d_attn_stride_k
            d_weights += tl.load(pointers, mask=present, other=0.0).to(acc)
        d_logits = attn * (d_weights - tl.sum(attn * d_weights, 1)[:, None])
        d_logits = tl.where(present, d_logits, 0.0)
        d_c += d_logits
        d_logits = d_logits.to(tile)
        if NEED_INPUTS:
            weights = (attn + EPSILON) * SCALE
            if SCALE != 1.0:
                weights = weights / total[None, :]
            weights = tl.where(present, weights, 0.0).to(tile)
            wide = _across(weights.to(acc) / SCALE, d_logits.to(acc))
            # Weights that are scaled take a product of their own; otherwise one product makes dx̃.
            if SCALE == 1.0:
                factors = _across(weights, d_logits)
            else:
                factors = _across(weights, tl.zeros_like(weights))
                logit_factors = _across(tl.zeros_like(d_logits), d_logits)
            # Both means of dx̃ over the columns that the LayerNorm's backward takes, from what is at hand.
            d_mean = tl.sum(wide * means, 1) * rstd
            d_along = mean_of(tl.sum(wide * along, 1), SIZE) * rstd
        for i in tl.static_range(len(x)):
            d_m = replaced(d_m, i, add_dot(d_m[i], tl.trans(x[i]), d_logits, PRECISION))
            if NEED_INPUTS:
                d_x = add_dot(tl.zeros([BLOCK_N, CHUNK], acc), factors, both[i], PRECISION)
                if SCALE != 1.0:
                    d_x = add_dot(d_x / SCALE, logit_factors, both[i], PRECISION)
                d_x = d_x * rstd[:, None] - d_mean[:, None] - x[i].to(acc) * d_along[:, None]
                store_chunk(
                    d_image_ptr, n, n < last, d_stride_n, d_stride_c, d_x, i * CHUNK, CHUNK, SIZE
                )

    d_keys_ptr += tl.program_id(0).to(tl.int64) * sums_size
    for i in tl.static_range(len(d_m)):
        within = v[:, None] * SIZE + i * CHUNK + c[None, :]
        kept = is_slot[:, None] & (i * CHUNK + c < SIZE)[None, :]
        tl.store(d_keys_ptr + within, tl.trans(d_m[i]), mask=kept)
    tl.store(d_keys_ptr + num_virtual * SIZE + v, tl.sum(d_c, 0), mask=is_slot)


def attend_backward(
    inputs: Tensor,
    mask: Tensor | None,
    m: Tensor,
    c: Tensor,
    sums: Tensor,
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
        mask: ``[B, N]`` of `mask_dtype`, any strides; 0 where an input is not valid.
        m: ``[B K, H C]``, tile dtype.
        c: ``[B K, H]``.
        sums: ``U`` and ``Z``, ``[B, 1, sums_size]``.
        d_sums: Of these, ``[B, 1, sums_size]``.
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
        sums,
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
        SCALE=2.0**14 if m.dtype == torch.float16 else 1.0,
        NORM_EPS=norm_eps,
        HAS_MASK=mask is not None,
        HAS_D_ATTN=d_attn is not None,
        NEED_INPUTS=d_inputs is not None,
        PRECISION=precision,
        BLOCK_N=plan.rows,
        BLOCK_V=padded(sizes.virtual),
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        num_warps=plan.warps,
        resident=plan.resident,
    )
