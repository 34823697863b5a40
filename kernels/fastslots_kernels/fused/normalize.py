"""The inputs normalised once for all iterations, where that moves fewer bytes than once in each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.attend import attend_blocks
from fastslots_kernels.fused.inputs import image_rows, load_normalized
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import Sizes


@triton.jit
def _normalize_kernel(
    inputs_ptr,  # [B, N, C], any strides
    mask_ptr,  # [B, N] bool, any strides
    normed_ptr,  # [B, N, C]
    num_inputs,
    stride_b,
    stride_n,
    stride_c,
    mask_stride_b,
    mask_stride_n,
    SIZE: tl.constexpr,  # C
    EPS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one tile of the inputs of one image."""
    tiles = tl.cdiv(num_inputs, BLOCK_N)
    b, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_N
    n, valid = image_rows(
        mask_ptr, b, first, num_inputs, mask_stride_b, mask_stride_n, HAS_MASK, BLOCK_N
    )
    c = tl.arange(0, BLOCK_C)
    tile: tl.constexpr = normed_ptr.dtype.element_ty
    image_ptr = inputs_ptr + b * stride_b
    normed, _, _, _ = load_normalized(
        image_ptr, n, valid, c, stride_n, stride_c, tile, tl.float32, SIZE, EPS
    )
    pointers = normed_ptr + ((b * num_inputs + n) * SIZE)[:, None] + c[None, :]
    tl.store(pointers, normed.to(tile), mask=(n < num_inputs)[:, None] & (c < SIZE)[None, :])


def normalizes_once(dtype: torch.dtype, tile: torch.dtype, num_iterations: int) -> bool:
    """Whether to store ``x̃`` in the tile dtype rather than to normalise the inputs in every iteration.

    It costs one pass that reads the inputs and writes ``x̃``, and saves bytes where ``x̃`` is narrower.
    """
    once = dtype.itemsize + tile.itemsize + num_iterations * tile.itemsize
    return once < num_iterations * dtype.itemsize


def normalize(
    inputs: Tensor, mask: Tensor | None, sizes: Sizes, eps: float, dtype: torch.dtype
) -> Tensor:
    """``x̃`` of float32 inputs ``[B, N, C]`` in a 16-bit dtype, contiguous; 0 at masked inputs."""
    normed = inputs.new_empty(inputs.shape, dtype=dtype)
    if normed.numel():
        blocks = attend_blocks(sizes, dtype, inputs.dtype)
        rows = inputs if mask is None else mask
        launch(
            _normalize_kernel,
            (sizes.batch * -(-sizes.num_inputs // blocks.inputs),),
            inputs,
            inputs if mask is None else mask.view(torch.uint8),
            normed,
            sizes.num_inputs,
            *inputs.stride(),
            *rows.stride()[:2],
            SIZE=sizes.input_size,
            EPS=eps,
            HAS_MASK=mask is not None,
            BLOCK_N=blocks.inputs,
            BLOCK_C=blocks.columns,
            num_warps=blocks.warps,
        )
    return normed
