"""The inputs' attention to the slots, and their sums under it (kernels/README.md#without-projections)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.inputs import (
    appended,
    image_rows,
    inverse_deviation,
    load_centred,
    load_tile,
    normalized,
    replaced,
    store_chunk,
)
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.plans import Plan, split_size
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.tiles import add_dot, softmax


@triton.jit
def _attend_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] of `mask_dtype`, any strides
    m_ptr,  # [B, V, C]
    c_ptr,  # [B, V, C_PARTS]
    sums_ptr,  # [B, S, sums_size]
    attn_ptr,  # [B, N, V]
    normed_ptr,  # [B, N, C]
    stop_ptr,  # int32
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
    SIZE: tl.constexpr,  # C
    EPSILON: tl.constexpr,
    SCALE: tl.constexpr,  # of the weights
    NORM_EPS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_STOP: tl.constexpr,
    STORE_ATTN: tl.constexpr,
    STORE_NORMED: tl.constexpr,
    C_PARTS: tl.constexpr,
    MOST_PARTS: tl.constexpr,  # a power of two
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,  # columns worked on at a time
    STAGES: tl.constexpr,
):
    """One program: one split of the inputs of one image."""
    if HAS_STOP:
        if tl.load(stop_ptr) != 0:
            return
    pid = tl.program_id(0)
    b, split = (pid // num_splits).to(tl.int64), pid % num_splits
    first = split * split_size
    last = tl.minimum(first + split_size, num_inputs)
    c, v = tl.arange(0, CHUNK), tl.arange(0, BLOCK_V)
    is_slot = v < num_virtual
    image_ptr, normed_ptr = inputs_ptr + b * stride_b, normed_ptr + b * num_inputs * SIZE
    m_ptr += b * num_virtual * SIZE
    sums_ptr += pid.to(tl.int64) * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = sums_ptr.dtype.element_ty

    m, sums = (), ()
    for first_c in tl.static_range(0, SIZE, CHUNK):
        within = v[:, None] * SIZE + first_c + c[None, :]
        kept = is_slot[:, None] & (first_c + c < SIZE)[None, :]
        m = appended(m, tl.trans(tl.load(m_ptr + within, mask=kept, other=0.0)))
        sums = appended(sums, tl.zeros([CHUNK, BLOCK_V], acc))
    part = tl.arange(0, MOST_PARTS)
    at_bias = (b * num_virtual + v)[:, None] * C_PARTS + part[None, :]
    valid_bias = is_slot[:, None] & (part < C_PARTS)[None, :]
    bias = tl.sum(tl.load(c_ptr + at_bias, mask=valid_bias, other=0.0), 1)
    bias = tl.where(is_slot, bias, float("-inf"))
    total = tl.zeros([BLOCK_N, BLOCK_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(
            mask_ptr, b, start, last, mask_stride_b, mask_stride_n, HAS_MASK, BLOCK_N
        )
        if NORMALIZED:
            x = load_tile(image_ptr, n, valid, stride_n, stride_c, SIZE, CHUNK)
        else:
            x = load_centred(image_ptr, n, valid, stride_n, stride_c, tile, acc, SIZE, CHUNK)
            rstd = inverse_deviation(x, valid, tile, SIZE, NORM_EPS)
            x = normalized(x, rstd, tile)
            if STORE_NORMED:
                for i in tl.static_range(len(x)):
                    store_chunk(normed_ptr, n, n < last, SIZE, 1, x[i], i * CHUNK, CHUNK, SIZE)
        logits = tl.zeros([BLOCK_N, BLOCK_V], acc)
        for i in tl.static_range(len(x)):
            logits = add_dot(logits, x[i], m[i], PRECISION)
        attn = softmax(logits + bias[None, :], tile)
        present = valid[:, None] & is_slot[None, :]
        weights = tl.where(present, (attn + EPSILON) * SCALE, 0.0).to(tile)
        # The divisor sums the rounded weights, so that U / Z stays a mean.
        total += weights.to(acc)
        for i in tl.static_range(len(x)):
            sums = replaced(sums, i, add_dot(sums[i], tl.trans(x[i]), weights, PRECISION))
        if STORE_ATTN:
            attn_ptrs = attn_ptr + (b * num_inputs + n)[:, None] * num_virtual + v[None, :]
            stored = (n < last)[:, None] & is_slot[None, :]
            attn = tl.where(present, attn, 0.0).to(attn_ptr.dtype.element_ty)
            tl.store(attn_ptrs, attn, mask=stored)

    for i in tl.static_range(len(sums)):
        within = v[:, None] * SIZE + i * CHUNK + c[None, :]
        kept = is_slot[:, None] & (i * CHUNK + c < SIZE)[None, :]
        tl.store(sums_ptr + within, tl.trans(sums[i]) / SCALE, mask=kept)
    total = tl.sum(total, 0) / SCALE
    tl.store(sums_ptr + num_virtual * SIZE + v, total, mask=is_slot)


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
    inputs: Tensor,
    mask: Tensor | None,
    m: Tensor,
    c: Tensor,
    sums: Tensor,
    sizes: Sizes,
    plan: Plan,
    *,
    epsilon: float,
    norm_eps: float | None,
    precision: str,
    attn: Tensor | None = None,
    normed: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Writes ``U`` and ``Z`` of every split to `sums`, the softmax to `attn` and ``x̃`` to `normed`.

    Args:
        inputs: ``[B, N, C]``, any strides.
        mask: ``[B, N]`` of `mask_dtype`, any strides; 0 where an input is not valid.
        m: ``[B K, H C]``, tile dtype.
        c: ``[B K, H, P]``, to be summed over P.
        sums: ``[B, S, sums_size]``; S is the number of splits.
        sizes: Of the call.
        plan: Of `attend_plan`.
        epsilon: Added to the softmax.
        norm_eps: Of the inputs' LayerNorm; None: ``inputs`` are normalised already and have the tile dtype.
        precision: Of products of float32: "ieee" or "tf32".
        attn: ``[B, N, K H]`` or None.
        normed: ``[B, N, C]`` in the tile dtype, contiguous, or None.
        stop: int32; nothing is written where it is not 0.
    """
    if not sizes.batch:
        return
    splits = sums.shape[1]
    rows = mask if mask is not None else inputs
    launch(
        _attend_kernel,
        (sizes.batch * splits,),
        inputs,
        inputs if mask is None else mask,
        m,
        c,
        sums,
        sums if attn is None else attn,
        m if normed is None else normed,
        sums if stop is None else stop,
        sizes.num_inputs,
        sizes.virtual,
        splits,
        split_size(sizes.num_inputs, splits, plan),
        sizes.sums_size,
        *inputs.stride(),
        *rows.stride()[:2],
        SIZE=sizes.input_size,
        EPSILON=epsilon,
        SCALE=weight_scale(m.dtype, epsilon),
        NORM_EPS=norm_eps or 0.0,
        NORMALIZED=norm_eps is None,
        HAS_MASK=mask is not None,
        HAS_STOP=stop is not None,
        STORE_ATTN=attn is not None,
        STORE_NORMED=normed is not None,
        C_PARTS=c.shape[2],
        MOST_PARTS=triton.next_power_of_2(c.shape[2]),
        PRECISION=precision,
        BLOCK_N=plan.rows,
        BLOCK_V=padded(sizes.virtual),
        CHUNK=plan.chunk,
        STAGES=plan.stages,
        num_warps=plan.warps,
        resident=plan.resident,
    )
