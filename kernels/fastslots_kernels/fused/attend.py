"""The inputs' attention to the slots, and their sums under it (kernels/README.md#without-projections)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.arithmetic import add_dot, softmax
from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import split_size
from fastslots_kernels.fused.sizes import padded
from fastslots_kernels.fused.tiles import (
    appended,
    image_rows,
    load_normalized,
    load_tile,
    replaced,
    store_chunk,
)
from fastslots_kernels.fused.update import Keys


@triton.jit
def _attend_kernel(
    inputs_ptr,  # [B, N, C], any strides: x, or x̃ if NORMALIZED
    mask_ptr,  # [B, N] of `mask_dtype`, any strides, or None
    m_ptr,  # [B, V, C]
    bias_ptr,  # [B, V, PARTS]: c is their sum
    sums_ptr,  # out [B, S, sums_size]: U, then Z
    attn_ptr,  # out [B, N, V], or None
    normed_ptr,  # out [B, N, C], or None
    stop_ptr,  # int32, or None
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
    C: tl.constexpr,
    EPSILON: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    NORM_EPS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PADDED_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``P = softmax(x̃ mᵀ + c)``, ``A = P + ε``, ``U = Aᵀ x̃`` and ``Z = Σₙ A``.

    One program: one split of the inputs of one image. A masked input has neither P nor A.
    """
    if stop_ptr is not None:
        if tl.load(stop_ptr) != 0:
            return
    pid = tl.program_id(0)
    b, split = (pid // num_splits).to(tl.int64), pid % num_splits
    first = split * split_size
    last = tl.minimum(first + split_size, num_inputs)
    c, v = tl.arange(0, BLOCK_C), tl.arange(0, PADDED_V)
    is_slot = v < num_virtual
    inputs_ptr += b * stride_b
    if normed_ptr is not None:
        normed_ptr += b * num_inputs * C
    m_ptr += b * num_virtual * C
    sums_ptr += pid.to(tl.int64) * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = sums_ptr.dtype.element_ty

    m, sums = (), ()
    for first_c in tl.static_range(0, C, BLOCK_C):
        at = v[:, None] * C + first_c + c[None, :]
        there = is_slot[:, None] & (first_c + c < C)[None, :]
        m = appended(m, tl.trans(tl.load(m_ptr + at, mask=there, other=0.0)))
        sums = appended(sums, tl.zeros([BLOCK_C, PADDED_V], acc))
    part = tl.arange(0, PADDED_PARTS)
    at = (b * num_virtual + v)[:, None] * PARTS + part[None, :]
    there = is_slot[:, None] & (part < PARTS)[None, :]
    bias = tl.sum(tl.load(bias_ptr + at, mask=there, other=0.0), 1)
    bias = tl.where(is_slot, bias, float("-inf"))
    total = tl.zeros([BLOCK_N, PADDED_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(mask_ptr, b, start, last, mask_stride_b, mask_stride_n, BLOCK_N)
        if NORMALIZED:
            x = load_tile(inputs_ptr, n, valid, stride_n, stride_c, C, BLOCK_C)
        else:
            x, _ = load_normalized(
                inputs_ptr, n, valid, stride_n, stride_c, tile, acc, NORM_EPS, C, BLOCK_C
            )
            if normed_ptr is not None:
                for i in tl.static_range(len(x)):
                    store_chunk(normed_ptr, n, n < last, C, 1, x[i], i * BLOCK_C, BLOCK_C, C)
        logits = tl.zeros([BLOCK_N, PADDED_V], acc)
        for i in tl.static_range(len(x)):
            logits = add_dot(logits, x[i], m[i], PRECISION)
        attn = softmax(logits + bias[None, :], tile)
        present = valid[:, None] & is_slot[None, :]
        weights = tl.where(present, (attn + EPSILON) * WEIGHT_SCALE, 0.0).to(tile)
        # The divisor sums the rounded weights, so that U / Z stays a mean.
        total += weights.to(acc)
        for i in tl.static_range(len(x)):
            sums = replaced(sums, i, add_dot(sums[i], tl.trans(x[i]), weights, PRECISION))
        if attn_ptr is not None:
            attn_ptrs = attn_ptr + (b * num_inputs + n)[:, None] * num_virtual + v[None, :]
            stored = (n < last)[:, None] & is_slot[None, :]
            attn = tl.where(present, attn, 0.0).to(attn_ptr.dtype.element_ty)
            tl.store(attn_ptrs, attn, mask=stored)

    for i in tl.static_range(len(sums)):
        at = v[:, None] * C + i * BLOCK_C + c[None, :]
        there = is_slot[:, None] & (i * BLOCK_C + c < C)[None, :]
        tl.store(sums_ptr + at, tl.trans(sums[i]) / WEIGHT_SCALE, mask=there)
    total = tl.sum(total, 0) / WEIGHT_SCALE
    tl.store(sums_ptr + num_virtual * C + v, total, mask=is_slot)


def mask_dtype(tile: torch.dtype) -> torch.dtype:
    """What kernels take a mask as: entries as wide as accumulators are.

    What is narrower than its tile changes the layout of a product's factors; of float64 there is none then.
    """
    return torch.int64 if tile == torch.float64 else torch.int32


def weight_scale(dtype: torch.dtype, epsilon: float) -> float:
    """A power of two by which weights are multiplied while they have the tile dtype.

    Weights are between epsilon and little more than 1 + epsilon. Float16 has no number as small as the usual
    epsilon, and none above 65504.
    """
    if dtype != torch.float16:
        return 1.0
    return 2.0 ** min(14, 15 - math.ceil(math.log2(1.0 + epsilon)))


def attend(
    call: Call,
    keys: Keys,
    sums: Tensor,
    *,
    normed: Tensor | None = None,
    store: Tensor | None = None,
    attn: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Attends to the inputs, or to ``x̃`` of them if it is given.

    Args:
        call: What the steps share.
        keys: Of the slots, as of `update.new_keys`.
        sums: Receives ``U`` and ``Z`` of every split, ``[B, S, sums_size]``, as of the plan for what is read.
        normed: ``x̃``, ``[B, N, C]`` in the tile dtype.
        store: Receives ``x̃``, ``[B, N, C]`` in the tile dtype, contiguous.
        attn: Receives the softmax, ``[B, N, K H]``.
        stop: int32 flag on the device: unless it is 0, nothing is written.
    """
    sizes, inputs = call.sizes, call.inputs if normed is None else normed
    if not sizes.batch:
        return
    splits, parts, plan = sums.shape[1], keys.bias.shape[2], call.attend_plan(normed)
    launch(
        _attend_kernel,
        (sizes.batch * splits,),
        inputs,
        call.mask,
        *keys,
        sums,
        attn,
        store,
        stop,
        sizes.num_inputs,
        sizes.virtual,
        splits,
        split_size(sizes.num_inputs, splits, plan),
        sizes.sums_size,
        *inputs.stride(),
        *(call.mask.stride() if call.mask is not None else (0, 0)),
        C=sizes.input_size,
        EPSILON=call.epsilon,
        WEIGHT_SCALE=weight_scale(call.tile, call.epsilon),
        NORM_EPS=call.norm_eps[0] if normed is None else 0.0,
        NORMALIZED=normed is not None,
        PARTS=parts,
        PADDED_PARTS=triton.next_power_of_2(parts),
        PRECISION=call.precision,
        BLOCK_N=plan.rows,
        PADDED_V=padded(sizes.virtual),
        BLOCK_C=plan.chunk,
        STAGES=plan.stages,
        num_warps=plan.warps,
        resident=plan.resident,
    )
