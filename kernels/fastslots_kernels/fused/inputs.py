"""How kernels read the inputs: a tile of rows, normalised without affine on load."""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import layer_norm, mean_of


@triton.jit
def image_rows(
    mask_ptr,
    b,
    first,
    last,
    mask_stride_b,
    mask_stride_n,
    HAS_MASK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Numbers of the rows from ``first`` on, int64, and which of them are before ``last`` and not masked."""
    n = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
    valid = n < last
    if HAS_MASK:
        mask = tl.load(mask_ptr + b * mask_stride_b + n * mask_stride_n, mask=valid, other=0)
        valid = valid & (mask != 0)
    return n, valid


@triton.jit
def load_normalized(
    image_ptr,  # [N, C] of one image
    n,
    valid,
    c,
    stride_n,
    stride_c,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    SIZE: tl.constexpr,
    EPS: tl.constexpr,
):
    """``x̃`` of a tile of rows in the accumulator's dtype, and ``mean``, ``rest`` and ``rstd`` of every row.

    ``x̃ = (x - mean - rest) rstd``; invalid rows and columns are 0. ``rest`` is what rounding leaves of a
    large mean; a tile of 16 bits cannot hold so little.
    """
    columns = (c < SIZE)[None, :]
    pointers = image_ptr + n[:, None] * stride_n + c[None, :].to(tl.int64) * stride_c
    x = tl.load(pointers, mask=valid[:, None] & columns, other=0.0).to(ACC)
    mean = mean_of(tl.sum(x, 1), SIZE)
    x = tl.where(columns, x - mean[:, None], 0.0)
    if TILE.primitive_bitwidth > 16:
        rest = mean_of(tl.sum(x, 1), SIZE)
        normed, rstd = layer_norm(x, columns, SIZE, EPS)
    else:
        rest = tl.zeros_like(mean)
        rstd = tl.rsqrt(mean_of(tl.sum(x * x, 1), SIZE) + EPS)
        normed = x * rstd[:, None]
    # Without an epsilon, rows of zeros, such as those that are not there, have no finite rstd.
    normed = tl.where(valid[:, None], normed, 0.0)
    return normed, mean, rest, tl.where(valid, rstd, 0.0)
