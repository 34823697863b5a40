"""How kernels read the inputs: a tile of rows in chunks of columns, normalised without affine on load."""

import triton
import triton.language as tl

from fastslots_kernels.fused.tiles import inverse_root, mean_of


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
def _cells(
    ptr, n, valid, stride_n, stride_c, FIRST: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr
):
    """Pointers to a chunk of columns of the rows n, and which are there: ``[rows, CHUNK / W, W]``.

    W columns have 64 bytes. Four threads then share a row and eight rows share a warp, so that a sum over
    columns takes two exchanges between threads, and is done for eight rows at a time.
    """
    W: tl.constexpr = min(CHUNK, 512 // ptr.dtype.element_ty.primitive_bitwidth)
    c = FIRST + (tl.arange(0, CHUNK // W) * W)[None, :, None] + tl.arange(0, W)[None, None, :]
    pointers = ptr + (n * stride_n)[:, None, None] + c.to(tl.int64) * stride_c
    there = valid[:, None, None]
    if FIRST + CHUNK > SIZE:
        there = there & (c < SIZE)
    return pointers, there


@triton.jit
def load_chunk(
    ptr, n, valid, stride_n, stride_c, FIRST: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr
):
    """Columns from FIRST on of the rows n, ``[rows, CHUNK]``; 0 where a row is not valid."""
    pointers, there = _cells(ptr, n, valid, stride_n, stride_c, FIRST, CHUNK, SIZE)
    return tl.reshape(tl.load(pointers, mask=there, other=0.0), [n.shape[0], CHUNK])


@triton.jit
def store_chunk(
    ptr,
    n,
    valid,
    stride_n,
    stride_c,
    x,
    FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Writes columns from FIRST on of the rows n that are valid."""
    pointers, there = _cells(ptr, n, valid, stride_n, stride_c, FIRST, CHUNK, SIZE)
    tl.store(pointers, tl.reshape(x.to(ptr.dtype.element_ty), pointers.shape), mask=there)


@triton.jit
def load_tile(ptr, n, valid, stride_n, stride_c, SIZE: tl.constexpr, CHUNK: tl.constexpr):
    """The rows n as they are, a tuple of chunks of columns; 0 where a row is not valid."""
    x = ()
    for first in tl.static_range(0, SIZE, CHUNK):
        c = first + tl.arange(0, CHUNK)
        pointers = ptr + n[:, None] * stride_n + c[None, :].to(tl.int64) * stride_c
        there = valid[:, None]
        if first + CHUNK > SIZE:
            there = there & (c < SIZE)[None, :]
        x = appended(x, tl.load(pointers, mask=there, other=0.0))
    return x


@triton.jit
def appended(values, value):
    """A tuple with one value more."""
    return values + (value,)  # noqa: RUF005 (Triton knows no other way)


@triton.jit
def replaced(values, AT: tl.constexpr, value):
    """A tuple with another value in one place."""
    found = ()
    for i in tl.static_range(len(values)):
        found = appended(found, value if i == AT else values[i])
    return found


@triton.jit
def _centre(x, SIZE: tl.constexpr, CHUNK: tl.constexpr):
    """Takes the mean off every row; columns that are not there stay 0."""
    total = x[0]
    for i in tl.static_range(1, len(x)):
        total += x[i]
    mean = mean_of(tl.sum(total, 1), SIZE)[:, None]
    centred = ()
    for i in tl.static_range(len(x)):
        part = x[i] - mean
        if (i + 1) * CHUNK > SIZE:
            part = tl.where((i * CHUNK + tl.arange(0, CHUNK) < SIZE)[None, :], part, 0.0)
        centred = appended(centred, part)
    return centred


@triton.jit
def load_centred(
    ptr,
    n,
    valid,
    stride_n,
    stride_c,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``x - mean(x)`` of the rows n in the accumulator's dtype, a tuple of chunks of columns."""
    x = ()
    for first in tl.static_range(0, SIZE, CHUNK):
        x = appended(x, load_chunk(ptr, n, valid, stride_n, stride_c, first, CHUNK, SIZE).to(ACC))
    x = _centre(x, SIZE, CHUNK)
    if TILE.primitive_bitwidth > 16:
        # What rounding leaves of a large mean; a tile of 16 bits cannot hold so little.
        x = _centre(x, SIZE, CHUNK)
    return x


@triton.jit
def inverse_deviation(centred, valid, TILE: tl.constexpr, SIZE: tl.constexpr, EPS: tl.constexpr):
    """``rstd`` of every row; 0 where it is not valid: such a row is 0, and has none without an epsilon."""
    total = centred[0] * centred[0]
    for i in tl.static_range(1, len(centred)):
        total += centred[i] * centred[i]
    variance = mean_of(tl.sum(total, 1), SIZE) + EPS
    return tl.where(valid, inverse_root(variance, TILE), 0.0)


@triton.jit
def normalized(centred, rstd, TILE: tl.constexpr):
    """``x̃ = (x - mean) rstd`` in the tile dtype, a tuple of chunks."""
    x = ()
    for i in tl.static_range(len(centred)):
        x = appended(x, (centred[i] * rstd[:, None]).to(TILE))
    return x
