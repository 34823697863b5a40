"""Tables of random numbers, and dropout by them, in one pass: hashes are mixed where an entry is written.

PyTorch alone takes a dozen passes over a table, and as many launches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslots_kernels.fused.launch import launch

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
    blocks, tile = _blocks(batch * heads * num_rows, num_columns)
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
            **tile,
            num_warps=4,
        )


@triton.jit
def _dropout_kernel(
    x_ptr,  # [B R, C]
    rows_ptr,  # [B R] int32
    columns_ptr,  # [B, C] int32
    y_ptr,  # [B R, C]
    limit,
    total_rows,  # B R
    num_rows,
    num_columns,
    KEEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """``y = x KEEP``, or 0 where the mixed hash is below the limit. Programs as those of a table."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid_row, valid_column = row < total_rows, column < num_columns
    valid = valid_row[:, None] & valid_column[None, :]
    at = row[:, None] * num_columns + column[None, :]
    of_column = (row // num_rows)[:, None] * num_columns + column[None, :]
    x = tl.load(x_ptr + at, mask=valid, other=0.0)
    row_hash = tl.load(rows_ptr + row, mask=valid_row, other=0)
    column_hash = tl.load(columns_ptr + of_column, mask=valid, other=0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    y = tl.where(mixed(row_hash[:, None] ^ column_hash) < limit, 0.0, x * KEEP)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=valid)


class _Dropout(torch.autograd.Function):
    """Linear in `x`: its derivatives, of any order, are itself."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor, columns: Tensor, p: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        batch, num_rows, num_columns = x.shape
        if not x.numel():
            return y
        blocks, tile = _blocks(batch * num_rows, num_columns)
        with torch.cuda.device_of(x):
            launch(
                _dropout_kernel,
                blocks,
                x,
                rows.contiguous(),
                columns.contiguous(),
                y,
                round(p * 2**32) - 2**31,
                batch * num_rows,
                num_rows,
                num_columns,
                KEEP=1 / (1 - p),
                **tile,
                num_warps=4,
            )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rows, columns, ctx.p = inputs
        ctx.save_for_backward(rows, columns)
        ctx.save_for_forward(rows, columns)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropout.apply(grad, *ctx.saved_tensors, ctx.p), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        dropped: Tensor = _Dropout.apply(tangent, *ctx.saved_tensors, ctx.p)
        return dropped


def dropout(x: Tensor, rows: Tensor, columns: Tensor, p: float) -> Tensor:
    """Zeroes the entries of ``[B, R, C]`` that `drop_table` names, and divides the others by ``1 - p``.

    Args:
        x: Of any float dtype. Its gradient drops the same entries; nothing of its size is kept.
        rows: Hashes, ``[B, R, 1]`` int32.
        columns: Hashes, ``[B, 1, C]`` int32.
        p: In [0, 1).
    """
    dropped: Tensor = _Dropout.apply(x, rows, columns, p)
    return dropped


def _blocks(num_rows: int, num_columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs for a table, and their tile."""
    columns = min(MOST_COLUMNS, triton.next_power_of_2(num_columns))
    rows = ENTRIES // columns
    blocks = triton.cdiv(num_rows, rows), triton.cdiv(num_columns, columns)
    return blocks, {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}
