"""The inputs' attention to the slots, and their sums under it (kernels/README.md#without-projections)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.inputs import image_rows, load_normalized
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.tiles import add_dot, softmax


@triton.jit
def _attend_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] bool, any strides
    m_ptr,  # [B, V, C]
    c_ptr,  # [B, V]
    sums_ptr,  # [B, S, sums_size]
    attn_ptr,  # [B, N, V]
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
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
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
    c, v = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_V)
    kept = (v < num_virtual)[:, None] & (c < SIZE)[None, :]
    image_ptr = inputs_ptr + b * stride_b
    sums_ptr += pid.to(tl.int64) * sums_size
    tile: tl.constexpr = m_ptr.dtype.element_ty
    acc: tl.constexpr = sums_ptr.dtype.element_ty

    within = v[:, None] * SIZE + c[None, :]
    m = tl.trans(tl.load(m_ptr + b * num_virtual * SIZE + within, mask=kept, other=0.0))
    bias = tl.load(c_ptr + b * num_virtual + v, mask=v < num_virtual, other=float("-inf"))
    sums = tl.zeros([BLOCK_V, BLOCK_C], acc)
    total = tl.zeros([BLOCK_V], acc)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n, valid = image_rows(
            mask_ptr, b, start, last, mask_stride_b, mask_stride_n, HAS_MASK, BLOCK_N
        )
        if NORMALIZED:
            pointers = image_ptr + n[:, None] * stride_n + c[None, :].to(tl.int64) * stride_c
            x = tl.load(pointers, mask=valid[:, None] & (c < SIZE)[None, :], other=0.0)
        else:
            normed, _, _, _ = load_normalized(
                image_ptr, n, valid, c, stride_n, stride_c, tile, acc, SIZE, NORM_EPS
            )
            x = normed.to(tile)
        logits = add_dot(tl.zeros([BLOCK_N, BLOCK_V], acc), x, m, PRECISION) + bias[None, :]
        attn = softmax(logits)
        present = valid[:, None] & (v < num_virtual)[None, :]
        weights = tl.where(present, (attn + EPSILON) * SCALE, 0.0).to(tile)
        # The divisor sums the rounded weights, so that U / Z stays a mean.
        total += tl.sum(weights.to(acc), 0)
        sums = add_dot(sums, tl.trans(weights), x, PRECISION)
        if STORE_ATTN:
            attn_ptrs = attn_ptr + (b * num_inputs + n)[:, None] * num_virtual + v[None, :]
            stored = (n < last)[:, None] & (v < num_virtual)[None, :]
            attn = tl.where(present, attn, 0.0).to(attn_ptr.dtype.element_ty)
            tl.store(attn_ptrs, attn, mask=stored)

    tl.store(sums_ptr + within, sums / SCALE, mask=kept)
    tl.store(sums_ptr + num_virtual * SIZE + v, total / SCALE, mask=v < num_virtual)


class AttendBlocks(NamedTuple):
    """Sizes of tiles, powers of two, and how they are worked on."""

    inputs: int
    columns: int
    virtual: int
    warps: int
    stages: int


def attend_blocks(sizes: Sizes, dtype: torch.dtype, input_dtype: torch.dtype) -> AttendBlocks:
    """Tiles of a dtype for inputs of a dtype, such that they fit and nothing spills to memory."""
    columns, virtual = padded(sizes.input_size), padded(sizes.virtual)
    if dtype.itemsize == 2:
        # Rows that are not aligned take an address per entry.
        inputs = 64 if columns <= 128 and sizes.input_size % 16 == 0 else 32
        warps = 4 if columns <= 256 and virtual <= 32 else 8
        stages = 3 if columns * input_dtype.itemsize <= 1024 else 2
    else:
        inputs, warps, stages = 32 if dtype.itemsize == 4 and virtual <= 32 else 16, 8, 1
    return AttendBlocks(inputs, columns, virtual, warps, stages)


def weight_scale(dtype: torch.dtype) -> float:
    """A power of two by which weights are multiplied while they have the tile dtype.

    Weights are between epsilon and little more than 1: float16 has no number as small as the usual epsilon.
    """
    return 2.0**14 if dtype == torch.float16 else 1.0


def num_splits(sizes: Sizes, dtype: torch.dtype, num_processors: int) -> int:
    """Programs per image: about two for every multiprocessor in all, and work for each."""
    tiles = _ceil(sizes.num_inputs, attend_blocks(sizes, dtype, dtype).inputs)
    wanted = _ceil(2 * num_processors, max(sizes.batch, 1))
    return max(1, _ceil(tiles, max(1, _ceil(tiles, wanted))))


def attend(
    inputs: Tensor,
    mask: Tensor | None,
    m: Tensor,
    c: Tensor,
    sums: Tensor,
    sizes: Sizes,
    *,
    epsilon: float,
    norm_eps: float | None,
    precision: str,
    attn: Tensor | None = None,
    stop: Tensor | None = None,
) -> None:
    """Writes ``U`` and ``Z`` of every split to `sums`, and the softmax to `attn`.

    Args:
        inputs: ``[B, N, C]``, any strides.
        mask: ``[B, N]`` bool, any strides.
        m: ``[B K, H C]``, tile dtype.
        c: ``[B K, H]``.
        sums: ``[B, S, sums_size]``; S is the number of splits.
        sizes: Of the call.
        epsilon: Added to the softmax.
        norm_eps: Of the inputs' LayerNorm; None: ``inputs`` are normalised already and have the tile dtype.
        precision: Of products of float32: "ieee" or "tf32".
        attn: ``[B, N, K H]`` or None.
        stop: int32; nothing is written where it is not 0.
    """
    if not sizes.batch:
        return
    blocks, splits = attend_blocks(sizes, m.dtype, inputs.dtype), sums.shape[1]
    rows = mask if mask is not None else inputs
    launch(
        _attend_kernel,
        (sizes.batch * splits,),
        inputs,
        inputs if mask is None else mask.view(torch.uint8),
        m,
        c,
        sums,
        sums if attn is None else attn,
        sums if stop is None else stop,
        sizes.num_inputs,
        sizes.virtual,
        splits,
        split_size(sizes, splits, blocks.inputs),
        sizes.sums_size,
        *inputs.stride(),
        *rows.stride()[:2],
        SIZE=sizes.input_size,
        EPSILON=epsilon,
        SCALE=weight_scale(m.dtype),
        NORM_EPS=norm_eps or 0.0,
        NORMALIZED=norm_eps is None,
        HAS_MASK=mask is not None,
        HAS_STOP=stop is not None,
        STORE_ATTN=attn is not None,
        PRECISION=precision,
        BLOCK_N=blocks.inputs,
        BLOCK_C=blocks.columns,
        BLOCK_V=blocks.virtual,
        STAGES=blocks.stages,
        num_warps=blocks.warps,
    )


def split_size(sizes: Sizes, splits: int, block: int) -> int:
    """Inputs per split: whole tiles."""
    return _ceil(_ceil(sizes.num_inputs, splits), block) * block


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
