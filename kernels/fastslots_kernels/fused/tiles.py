"""How kernels read and write tiles: of the inputs, in chunks of columns; of slots and weights, by rows.

Of the inputs a tile is a tuple of chunks ``[rows, BLOCK_C]``, normalised without affine on load.
"""

import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import add_dot, inverse_root, layer_norm, mean_of


@triton.jit
def image_rows(
    mask_ptr, b, first, last, mask_stride_b, mask_stride_n, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Numbers of the rows from ``first`` on, int64, and which of them are before ``last`` and not masked."""
    n = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
    valid = n < last
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + b * mask_stride_b + n * mask_stride_n, mask=valid, other=0)
        valid = valid & (mask != 0)
    return n, valid


@triton.jit
def _cells(
    ptr, n, valid, stride_n, stride_c, FIRST: tl.constexpr, BLOCK_C: tl.constexpr, C: tl.constexpr
):
    """Pointers to a chunk of columns of the rows n, and which are there: ``[rows, BLOCK_C / SPAN, SPAN]``.

    SPAN columns have 64 bytes. Four threads then share a row and eight rows share a warp, so that a sum over
    columns takes two exchanges between threads, and is done for eight rows at a time.
    """
    SPAN: tl.constexpr = min(BLOCK_C, 512 // ptr.dtype.element_ty.primitive_bitwidth)
    c = FIRST + (tl.arange(0, BLOCK_C // SPAN) * SPAN)[None, :, None]
    c += tl.arange(0, SPAN)[None, None, :]
    pointers = ptr + (n * stride_n)[:, None, None] + c.to(tl.int64) * stride_c
    there = valid[:, None, None]
    if FIRST + BLOCK_C > C:
        there = there & (c < C)
    return pointers, there


@triton.jit
def load_chunk(
    ptr, n, valid, stride_n, stride_c, FIRST: tl.constexpr, BLOCK_C: tl.constexpr, C: tl.constexpr
):
    """Columns from FIRST on of the rows n, ``[rows, BLOCK_C]``; 0 where a row is not valid."""
    pointers, there = _cells(ptr, n, valid, stride_n, stride_c, FIRST, BLOCK_C, C)
    return tl.reshape(tl.load(pointers, mask=there, other=0.0), [n.shape[0], BLOCK_C])


@triton.jit
def store_chunk(
    ptr, n, valid, stride_n, stride_c, x,
    FIRST: tl.constexpr, BLOCK_C: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Writes columns from FIRST on of the rows n that are valid."""
    pointers, there = _cells(ptr, n, valid, stride_n, stride_c, FIRST, BLOCK_C, C)
    tl.store(pointers, tl.reshape(x.to(ptr.dtype.element_ty), pointers.shape), mask=there)


@triton.jit
def load_tile(ptr, n, valid, stride_n, stride_c, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The rows n as they are, a tuple of chunks of columns; 0 where a row is not valid."""
    x = ()
    for first in tl.static_range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        pointers = ptr + n[:, None] * stride_n + c[None, :].to(tl.int64) * stride_c
        there = valid[:, None]
        if first + BLOCK_C > C:
            there = there & (c < C)[None, :]
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
def _centre(x, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Takes the mean off every row; columns that are not there stay 0."""
    total = x[0]
    for i in tl.static_range(1, len(x)):
        total += x[i]
    mean = mean_of(tl.sum(total, 1), C)[:, None]
    centred = ()
    for i in tl.static_range(len(x)):
        part = x[i] - mean
        if (i + 1) * BLOCK_C > C:
            part = tl.where((i * BLOCK_C + tl.arange(0, BLOCK_C) < C)[None, :], part, 0.0)
        centred = appended(centred, part)
    return centred


@triton.jit
def load_normalized(
    ptr, n, valid, stride_n, stride_c,
    TILE: tl.constexpr, ACC: tl.constexpr, EPS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``x̃ = (x - mean) rstd`` of the rows n in the tile dtype, a tuple of chunks, and ``rstd``.

    Both are 0 where a row is not valid: such a row is 0, and has no ``rstd`` without an epsilon.
    """
    x = ()
    for first in tl.static_range(0, C, BLOCK_C):
        x = appended(x, load_chunk(ptr, n, valid, stride_n, stride_c, first, BLOCK_C, C).to(ACC))
    x = _centre(x, C, BLOCK_C)
    if TILE.primitive_bitwidth > 16:
        # What rounding leaves of a large mean; a tile of 16 bits cannot hold so little.
        x = _centre(x, C, BLOCK_C)
    squares = x[0] * x[0]
    for i in tl.static_range(1, len(x)):
        squares += x[i] * x[i]
    rstd = inverse_root(mean_of(tl.sum(squares, 1), C) + EPS, TILE)
    rstd = tl.where(valid, rstd, 0.0)
    normalized = ()
    for i in tl.static_range(len(x)):
        normalized = appended(normalized, (x[i] * rstd[:, None]).to(TILE))
    return normalized, rstd


@triton.jit
def load_row(pointers, valid):
    """A vector as one row of a tile."""
    return tl.load(pointers, mask=valid, other=0.0)[None, :]


@triton.jit
def sum_splits(pointers, valid, NUM_SPLITS: tl.constexpr, stride):
    """What lies at `pointers`, summed over the splits in order; those lie `stride` entries apart."""
    total = tl.load(pointers, mask=valid, other=0.0)
    for split in tl.static_range(1, NUM_SPLITS):
        total += tl.load(pointers + split * stride, mask=valid, other=0.0)
    return total


@triton.jit
def tile_of(COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Rows, int64, and columns of a program, of which all those of some rows follow one another."""
    blocks: tl.constexpr = (COLUMNS + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    pid = tl.program_id(0)
    rows = (pid // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return rows, pid % blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)


@triton.jit
def rows_repeated(index, num_rows, BLOCK_ROWS: tl.constexpr):
    """Rows of a tile, int64, those past the end the last one again, and which of them exist."""
    rows = index * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return tl.minimum(rows, num_rows - 1).to(tl.int64), rows < num_rows


@triton.jit
def normed_rows(
    x, d, weight_ptr, bias_ptr, D: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """LayerNorm of whole rows ``[rows, PADDED_D]``, affine included, in a tile dtype."""
    valid_d = d < D
    normed, _ = layer_norm(x, valid_d[None, :], D, EPS, TILE)
    return (normed * load_row(weight_ptr + d, valid_d) + load_row(bias_ptr + d, valid_d)).to(TILE)


@triton.jit
def load_weight(weight_ptr, outputs, valid, i, INNER: tl.constexpr):
    """Some columns of some rows of ``[outputs, INNER]``, transposed: the right factor of a product."""
    weight = weight_ptr + outputs[None, :] * INNER + i[:, None]
    return tl.load(weight, mask=valid[None, :] & (i < INNER)[:, None], other=0.0)


@triton.jit
def row_product(
    rows,  # int64
    valid_row,
    a_ptr,  # [R, INNER]
    weight_ptrs,  # where columns of the weight start
    valid_column,
    INNER: tl.constexpr,
    STRIDE: tl.constexpr,  # of the weight, along the sum
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Some rows, 0 past the end, times some columns of a weight."""
    total = tl.zeros([rows.shape[0], weight_ptrs.shape[0]], ACC)
    for first in tl.range(0, INNER, CHUNK, num_stages=STAGES):
        i = first + tl.arange(0, CHUNK)
        a_at = a_ptr + (rows * INNER)[:, None] + i[None, :]
        a = tl.load(a_at, mask=valid_row[:, None] & (i < INNER)[None, :], other=0.0)
        weight_at = weight_ptrs[None, :] + i[:, None] * STRIDE
        weight = tl.load(weight_at, mask=(i < INNER)[:, None] & valid_column[None, :], other=0.0)
        total = add_dot(total, a, weight, PRECISION)
    return total
