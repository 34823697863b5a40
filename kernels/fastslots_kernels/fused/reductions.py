"""Sums over splits, and whether the slots have stopped moving."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import Sizes, ceil_div


@triton.jit
def _reduce_splits_kernel(
    partial_ptr,  # [B, S, sums_size]
    sums_ptr,  # out [B, sums_size]
    num_splits,
    sums_size,
    filled,
    column_blocks,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """``Σₛ partial``, some columns of one image; 0 past the `filled` ones, which are no padding."""
    image = (tl.program_id(0) // column_blocks).to(tl.int64)
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.arange(0, BLOCK_SPLITS)
    total = tl.zeros([BLOCK_SPLITS, BLOCK_COLUMNS], sums_ptr.dtype.element_ty)
    for first in range(0, num_splits, BLOCK_SPLITS):
        valid = (first + split < num_splits)[:, None] & (column < filled)[None, :]
        at = (image * num_splits + first + split)[:, None] * sums_size + column[None, :]
        total += tl.load(partial_ptr + at, mask=valid, other=0.0)
    tl.store(sums_ptr + image * sums_size + column, tl.sum(total, 0), mask=column < sums_size)


@triton.jit
def _converged_kernel(
    residual_ptr,  # [B, entries, 2]: Σ (s'' - s)², Σ s''²
    stop_ptr,  # in and out, int32
    used_ptr,  # in and out, int64
    num_images,
    num_entries,  # of an image: slots, and blocks of their columns
    TOLERANCE: tl.constexpr,
    BLOCK_IMAGES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Counts the iteration, and stops if ``‖s'' - s‖ < TOLERANCE ‖s''‖ of every image. One program."""
    if tl.load(stop_ptr) != 0:
        return
    moving = tl.zeros([BLOCK_IMAGES], tl.int32)
    for first_image in range(0, num_images, BLOCK_IMAGES):
        image = first_image + tl.arange(0, BLOCK_IMAGES)
        change = tl.zeros([BLOCK_IMAGES], residual_ptr.dtype.element_ty)
        norm = tl.zeros([BLOCK_IMAGES], residual_ptr.dtype.element_ty)
        for first_slot in range(0, num_entries, BLOCK_SLOTS):
            slot = first_slot + tl.arange(0, BLOCK_SLOTS)
            valid = (image < num_images)[:, None] & (slot < num_entries)[None, :]
            at = (image.to(tl.int64)[:, None] * num_entries + slot[None, :]) * 2
            change += tl.sum(tl.load(residual_ptr + at, mask=valid, other=0.0), 1)
            norm += tl.sum(tl.load(residual_ptr + at + 1, mask=valid, other=0.0), 1)
        still = tl.sqrt(change) < TOLERANCE * tl.sqrt(norm)  # false for NaN
        moving += ((image < num_images) & (still == 0)).to(tl.int32)
    tl.store(used_ptr, tl.load(used_ptr) + 1)
    tl.store(stop_ptr, (tl.sum(moving, 0) == 0).to(tl.int32))


def reduce_splits(partial: Tensor, sizes: Sizes) -> Tensor:
    """Sums ``[B, S, sums_size]`` over the splits, always in the same order, to ``[B, 1, sums_size]``.

    The padding may hold anything, and becomes 0.
    """
    batch, splits, size = partial.shape
    sums = partial.new_empty(batch, 1, size)
    if sums.numel() == 0:
        return sums
    block = 128
    column_blocks = ceil_div(size, block)
    launch(
        _reduce_splits_kernel,
        (batch * column_blocks,),
        partial,
        sums,
        splits,
        size,
        sizes.virtual * (sizes.input_size + 1),
        column_blocks,
        BLOCK_SPLITS=16,
        BLOCK_COLUMNS=block,
        num_warps=4,
    )
    return sums


def converged(residual: Tensor, stop: Tensor, used: Tensor, sizes: Sizes, tolerance: float) -> None:
    """Counts an iteration, and sets the flag if it moved the slots of no image by much.

    Args:
        residual: Of `update_slots`, ``[R, blocks, 2]``.
        stop: int32 flag; set to 1 if ``‖new - slots‖ < tolerance ‖new‖`` for every image. Once it is set,
            nothing is written.
        used: int64, the number of iterations; 1 is added.
        sizes: Of the call.
        tolerance: Of the relative change.
    """
    if sizes.rows == 0:
        return
    launch(
        _converged_kernel,
        (1,),
        residual,
        stop,
        used,
        sizes.batch,
        sizes.num_slots * residual.shape[1],
        TOLERANCE=tolerance,
        BLOCK_IMAGES=128,
        BLOCK_SLOTS=16,
        num_warps=4,
    )
