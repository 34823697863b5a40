"""The backward of `attend` in one pass over the inputs (kernels/README.md#backward-of-one-step)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.arithmetic import add_dot, mean_of, softmax, softmax_backward
from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import split_size
from fastslots_kernels.fused.sizes import padded
from fastslots_kernels.fused.tiles import (
    appended,
    image_rows,
    load_normalized,
    replaced,
    store_chunk,
)
from fastslots_kernels.fused.update import Keys


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
def _factors_of_d_inputs(
    weights, d_logits, along, means, rstd, WEIGHT_SCALE: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """``[A, dL]``, which times ``[dU; m]`` is ``dx̃``, and both means of ``dx̃`` over its columns, times rstd.

    Those that the LayerNorm's backward takes follow from what is at hand: ``along``, x̃ times ``[dU; m]``, and
    ``means`` over its columns. Weights that are scaled take a product of their own: then two factors.
    """
    wide = _across(weights.to(along.dtype) / WEIGHT_SCALE, d_logits.to(along.dtype))
    if WEIGHT_SCALE == 1.0:
        factors = _across(weights, d_logits)
        logit_factors = factors  # which is not used
    else:
        factors = _across(weights, tl.zeros_like(weights))
        logit_factors = _across(tl.zeros_like(d_logits), d_logits)
    d_mean = tl.sum(wide * means, 1) * rstd
    d_along = mean_of(tl.sum(wide * along, 1), C) * rstd
    return factors, logit_factors, d_mean, d_along


@triton.jit
def _attend_backward_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] of `mask_dtype`, any strides, or None
    m_ptr,  # [B, V, C]
    bias_ptr,  # [B, V]: c
    sums_ptr,  # [B, sums_size]
    d_sums_ptr,  # [B, sums_size]: dU, then dZ
    d_attn_ptr,  # [B, N, K], any strides, or None for zero
    d_inputs_ptr,  # out [B, N, C], any strides, or None
    d_keys_ptr,  # out [B, S, sums_size]: dm, then dc
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
    C: tl.constexpr,
    H: tl.constexpr,
    EPSILON: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,  # they are divided by Z if it is not 1
    NORM_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PADDED_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``dL = P ∘ (dA + dP₀ - Σⱼ P (dA + dP₀))`` with ``dA = x̃ dUᵀ + dZ``; ``dm = dLᵀ x̃`` and ``dc = Σₙ dL``.

    ``dx = rstd (dx̃ - mean(dx̃) - x̃ mean(dx̃ ∘ x̃))`` with ``dx̃ = A dU + dL m``. P is computed again.
    One program: one split of the inputs of one image.
    """
    pid = tl.program_id(0)
    b, split = (pid // num_splits).to(tl.int64), pid % num_splits
    first = split * split_size
    last = tl.minimum(first + split_size, num_inputs)
    v, c = tl.arange(0, PADDED_V), tl.arange(0, BLOCK_C)
    is_slot = v < num_virtual
    inputs_ptr += b * stride_b
    if d_inputs_ptr is not None:
        d_inputs_ptr += b * d_stride_b
    m_ptr += b * num_virtual * C
    sums_ptr += b * sums_size
    d_sums_ptr += b * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = d_sums_ptr.dtype.element_ty

    if WEIGHT_SCALE != 1.0:
        # dU is as large as 1 / Z, which float16 cannot hold where no input chooses a slot: products take
        # A / Z and Z dU in place of A and dU.
        total = tl.load(sums_ptr + num_virtual * C + v, mask=is_slot, other=1.0)
        total = tl.where(total > 0, total, 1.0)
    both, sums_of_m, sums_of_d = (), tl.zeros([PADDED_V], acc), tl.zeros([PADDED_V], acc)
    d_m = ()
    for first_c in tl.static_range(0, C, BLOCK_C):
        at = v[:, None] * C + first_c + c[None, :]
        there = is_slot[:, None] & (first_c + c < C)[None, :]
        m = tl.load(m_ptr + at, mask=there, other=0.0)
        d_sums = tl.load(d_sums_ptr + at, mask=there, other=0.0)
        if WEIGHT_SCALE != 1.0:
            d_sums = d_sums * total[:, None]
        d_sums = d_sums.to(tile)
        sums_of_m += tl.sum(m.to(acc), 1)
        sums_of_d += tl.sum(d_sums.to(acc), 1)
        # Side by side, so that one product makes x̃ · m and x̃ · dU.
        both = appended(both, _beside(d_sums, m))
        d_m = appended(d_m, tl.zeros([BLOCK_C, PADDED_V], acc))
    means = mean_of(_beside(sums_of_d[:, None], sums_of_m[:, None]), C)
    means = tl.reshape(means, [1, 2 * PADDED_V])
    bias = tl.load(bias_ptr + b * num_virtual + v, mask=is_slot, other=float("-inf"))
    d_total = tl.load(d_sums_ptr + num_virtual * C + v, mask=is_slot, other=0.0)
    d_bias = tl.zeros([BLOCK_N, PADDED_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(mask_ptr, b, start, last, mask_stride_b, mask_stride_n, BLOCK_N)
        x, rstd = load_normalized(
            inputs_ptr, n, valid, stride_n, stride_c, tile, acc, NORM_EPS, C, BLOCK_C
        )
        present = valid[:, None] & is_slot[None, :]
        along = tl.zeros([BLOCK_N, 2 * PADDED_V], acc)
        for i in tl.static_range(len(x)):
            along = add_dot(along, x[i], tl.trans(both[i]), PRECISION)
        along_d_sums, along_m = _apart(along)
        attn = softmax(along_m + bias[None, :], tile)
        if WEIGHT_SCALE != 1.0:
            along_d_sums = along_d_sums / total[None, :]
        d_attn = along_d_sums + d_total[None, :]
        if d_attn_ptr is not None:
            pointers = d_attn_ptr + b * d_attn_stride_b + n[:, None] * d_attn_stride_n
            pointers += (v // H).to(tl.int64)[None, :] * d_attn_stride_k
            d_attn += tl.load(pointers, mask=present, other=0.0).to(acc)
        d_logits = tl.where(present, softmax_backward(attn, d_attn), 0.0)
        d_bias += d_logits
        d_logits = d_logits.to(tile)
        if d_inputs_ptr is not None:
            weights = (attn + EPSILON) * WEIGHT_SCALE
            if WEIGHT_SCALE != 1.0:
                weights = weights / total[None, :]
            weights = tl.where(present, weights, 0.0).to(tile)
            factors, logit_factors, d_mean, d_along = _factors_of_d_inputs(
                weights, d_logits, along, means, rstd, WEIGHT_SCALE, C
            )
        for i in tl.static_range(len(x)):
            d_m = replaced(d_m, i, add_dot(d_m[i], tl.trans(x[i]), d_logits, PRECISION))
            if d_inputs_ptr is not None:
                d_x = add_dot(tl.zeros([BLOCK_N, BLOCK_C], acc), factors, both[i], PRECISION)
                if WEIGHT_SCALE != 1.0:
                    d_x = add_dot(d_x / WEIGHT_SCALE, logit_factors, both[i], PRECISION)
                d_x = d_x * rstd[:, None] - d_mean[:, None] - x[i].to(acc) * d_along[:, None]
                store_chunk(
                    d_inputs_ptr, n, n < last, d_stride_n, d_stride_c, d_x, i * BLOCK_C, BLOCK_C, C
                )

    d_keys_ptr += pid.to(tl.int64) * sums_size
    for i in tl.static_range(len(d_m)):
        at = v[:, None] * C + i * BLOCK_C + c[None, :]
        there = is_slot[:, None] & (i * BLOCK_C + c < C)[None, :]
        tl.store(d_keys_ptr + at, tl.trans(d_m[i]), mask=there)
    tl.store(d_keys_ptr + num_virtual * C + v, tl.sum(d_bias, 0), mask=is_slot)


def attend_backward(
    call: Call,
    keys: Keys,
    sums: Tensor,
    d_sums: Tensor,
    d_attn: Tensor | None,
    d_inputs: Tensor | None,
    d_keys: Tensor,
) -> None:
    """Writes the gradients of the inputs and, for every split, of ``m`` and the bias.

    Args:
        call: As in the forward.
        keys: Of the slots, with one part of the bias.
        sums: ``U`` and ``Z``, ``[B, 1, sums_size]``.
        d_sums: Of these, ``[B, 1, sums_size]``.
        d_attn: Of the softmax summed over heads, ``[B, N, K]``, any strides, or None for zero.
        d_inputs: Receives theirs, ``[B, N, C]``; None: they need none.
        d_keys: Receives those of the keys, ``[B, S, sums_size]``, as of `Call.backward_plan`.
    """
    sizes = call.sizes
    if not sizes.batch:
        return
    splits, plan = d_keys.shape[1], call.backward_plan
    not_there = 0, 0, 1  # strides as of contiguous tensors, whose last one is a constant
    launch(
        _attend_backward_kernel,
        (sizes.batch * splits,),
        call.inputs,
        call.mask,
        *keys,
        sums,
        d_sums,
        d_attn,
        d_inputs,
        d_keys,
        sizes.num_inputs,
        sizes.virtual,
        splits,
        split_size(sizes.num_inputs, splits, plan),
        sizes.sums_size,
        *call.inputs.stride(),
        *(call.mask.stride() if call.mask is not None else (0, 0)),
        *(d_attn.stride() if d_attn is not None else not_there),
        *(d_inputs.stride() if d_inputs is not None else not_there),
        C=sizes.input_size,
        H=sizes.num_heads,
        EPSILON=call.epsilon,
        WEIGHT_SCALE=2.0**14 if call.tile == torch.float16 else 1.0,
        NORM_EPS=call.norm_eps[0],
        PRECISION=call.precision,
        BLOCK_N=plan.rows,
        PADDED_V=padded(sizes.virtual),
        BLOCK_C=plan.chunk,
        STAGES=plan.stages,
        num_warps=plan.warps,
        resident=plan.resident,
    )
