"""Tables of random numbers in one pass: rows and columns of hashes are mixed where an entry is written.

PyTorch alone takes a dozen passes over a table, and as many launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import ceil_div

MOST_COLUMNS, ENTRIES = 512, 2048  # of a program
FRACTION_BITS = 23  # with the half that is added: what float32 holds exactly below 1


@triton.jit
def mixed(x):
    """The last rounds of `fastslots.noise`, over the exclusive or of an entry's hashes; int32."""
    x = x.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return (x ^ (x >> 16)).to(tl.int32, bitcast=True)


@triton.jit
def _table_kernel(
    rows_ptr,  # [B, H, R] int32, any strides
    columns_ptr,  # [B, H, C] int32, any strides
    table_ptr,  # [B, H, R, C] uint8 or float32
    limit,
    total_rows,  # B H R
    num_heads,
    num_rows,
    num_columns,
    rows_stride_b,
    rows_stride_h,
    rows_stride_r,
    columns_stride_b,
    columns_stride_h,
    columns_stride_c,
    DROPS: tl.constexpr,
    FRACTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One program: some rows, of one or more tables, by some columns."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid_row, valid_column = row < total_rows, column < num_columns
    valid = valid_row[:, None] & valid_column[None, :]
    r, table = row % num_rows, row // num_rows
    b, h = table // num_heads, table % num_heads
    of_row = b * rows_stride_b + h * rows_stride_h + r * rows_stride_r
    of_table = b * columns_stride_b + h * columns_stride_h
    of_column = of_table[:, None] + column[None, :] * columns_stride_c
    row_hash = tl.load(rows_ptr + of_row, mask=valid_row, other=0)
    column_hash = tl.load(columns_ptr + of_column, mask=valid, other=0)
    value = mixed(row_hash[:, None] ^ column_hash)
    if DROPS:
        value = value < limit
    else:
        value = ((value & ((1 << FRACTION) - 1)).to(tl.float32) + 0.5) * (1.0 / (1 << FRACTION))
    at = row[:, None] * num_columns + column[None, :]
    tl.store(table_ptr + at, value.to(table_ptr.dtype.element_ty), mask=valid)


def drop_table(rows: Tensor, columns: Tensor, limit: int) -> Tensor:
    """Where the mixed hash, as int32, is below a limit: bool.

    Args:
        rows: Hashes, ``[..., R, 1]`` int32 with one or two dimensions before R.
        columns: Hashes, ``[..., 1, C]`` int32; the dimensions before are broadcast.
        limit: Within int32.
    """
    table = _empty(rows, columns, torch.bool)
    _fill(rows, columns, table.view(torch.uint8), limit, drops=True)
    return table


def uniform_table(rows: Tensor, columns: Tensor) -> Tensor:
    """Uniform on (0, 1), both ends excluded, float32; arguments as in `drop_table`."""
    table = _empty(rows, columns, torch.float32)
    _fill(rows, columns, table, 0, drops=False)
    return table


def _empty(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    shape = torch.broadcast_shapes(rows.shape, columns.shape)
    return torch.empty(shape, dtype=dtype, device=rows.device)


def _fill(rows: Tensor, columns: Tensor, table: Tensor, limit: int, *, drops: bool) -> None:
    if not table.numel():
        return
    rows, columns = (x.expand(*table.shape[:-2], *x.shape[-2:]) for x in (rows, columns))
    if table.ndim == 3:
        rows, columns, table = (x.unsqueeze(1) for x in (rows, columns, table))
    batch, heads, num_rows, num_columns = table.shape
    block_columns = min(MOST_COLUMNS, triton.next_power_of_2(num_columns))
    block_rows = ENTRIES // block_columns
    blocks = ceil_div(batch * heads * num_rows, block_rows), ceil_div(num_columns, block_columns)
    with torch.cuda.device_of(rows):
        launch(
            _table_kernel,
            blocks,
            rows,
            columns,
            table,
            limit,
            batch * heads * num_rows,
            heads,
            num_rows,
            num_columns,
            *rows.stride()[:3],
            *columns.stride()[:2],
            columns.stride(3),
            DROPS=drops,
            FRACTION=FRACTION_BITS,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
            num_warps=4,
        )
