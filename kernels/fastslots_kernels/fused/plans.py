"""How the inputs are cut into tiles and programs: tiles from a table, splits from an estimate."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from fastslots_kernels.fused.sizes import Sizes, ceil_div, padded

# What a program costs besides its tiles, in tiles: keys read, sums written, and read by the slot update.
_TILES_PER_PROGRAM = 1.0
_MOST_SPLITS = 1024


class Plan(NamedTuple):
    """How a kernel that passes over the inputs is run."""

    rows: int  # of a tile, a power of two
    warps: int
    stages: int  # tiles on their way at a time
    resident: int  # programs that a multiprocessor holds at a time
    chunk: int  # columns worked on at a time, a power of two


class UpdatePlan(NamedTuple):
    """How the slot update is run: rows and columns of a program, and chunks of sums over columns."""

    rows: int
    columns: int
    chunk: int
    stages: int  # chunks of weights on their way at a time
    warps: int

    def row_tiles(self, rows: int) -> int:
        """Programs for rows of slots."""
        return ceil_div(rows, self.rows)

    def column_blocks(self, columns: int) -> int:
        """Programs for columns."""
        return ceil_div(columns, self.columns)


# Of 16-bit tiles: kernel, columns, virtual slots as padded. Chosen by registers and instructions on sm_90.
_TABLE: dict[tuple[str, int, int], Plan] = {
    ("raw", 64, 16): Plan(64, 4, 2, 4, 64),
    ("raw", 192, 16): Plan(32, 4, 1, 4, 64),
    ("raw", 256, 16): Plan(32, 4, 1, 3, 64),
    ("raw", 256, 32): Plan(32, 4, 1, 2, 64),
    ("normed", 64, 16): Plan(64, 4, 3, 5, 64),
    ("normed", 192, 16): Plan(64, 4, 2, 3, 64),
    ("normed", 256, 16): Plan(64, 4, 2, 3, 64),
    ("normed", 256, 32): Plan(64, 4, 2, 2, 64),
    ("backward", 64, 16): Plan(64, 4, 1, 3, 64),
    ("backward", 192, 16): Plan(64, 4, 1, 2, 64),
    ("backward", 256, 16): Plan(64, 4, 1, 2, 128),
    ("backward", 256, 32): Plan(64, 8, 1, 1, 64),
}
# As above, for Triton 3.8 and later, whose code takes more registers.
_LATER: dict[tuple[str, int, int], Plan] = {
    ("backward", 256, 16): Plan(64, 8, 1, 1, 64),
    ("backward", 256, 32): Plan(32, 4, 1, 1, 64),
}


def attend_plan(sizes: Sizes, tile: torch.dtype, input_dtype: torch.dtype, *, normed: bool) -> Plan:
    """Of `attend`; nothing spills to memory.

    Args:
        sizes: Of the call.
        tile: The dtype of products.
        input_dtype: That of what is read.
        normed: Whether it is normalised already.
    """
    columns, virtual = padded(sizes.input_size), padded(sizes.virtual)
    chunk = min(64, columns)
    if tile.itemsize == 2:
        found = _TABLE.get(("normed" if normed else "raw", sizes.input_size, virtual))
        if found is not None:
            return found
        # Rows that are not aligned take an address per entry.
        rows = 64 if columns <= 128 and sizes.input_size % 16 == 0 else 32
        warps = 4 if columns <= 256 and virtual <= 32 else 8
        return Plan(rows, warps, 2 if normed else 1, 2, chunk)
    rows = 32 if tile.itemsize == 4 and virtual <= 32 else 16
    return Plan(rows, 8, 1, 1, chunk)


def backward_plan(sizes: Sizes, tile: torch.dtype, *, warp_groups: bool) -> Plan:
    """Of `attend_backward`; nothing spills to memory.

    Args:
        sizes: Of the call.
        tile: The dtype of products.
        warp_groups: Whether the matrix units read their operands from shared memory and leave the results in
            registers, as those of compute capability 9.0 do: there is room for larger tiles.
    """
    columns, virtual = padded(sizes.input_size), padded(sizes.virtual)
    entries = columns * virtual
    if tile.itemsize == 2:
        key = ("backward", sizes.input_size, virtual)
        if warp_groups and key in _TABLE:
            return _LATER.get(key, _TABLE[key]) if _later_triton() else _TABLE[key]
        rows, chunk = 32 if columns <= 256 and entries <= 8192 else 16, 64
        if entries <= 1024 and sizes.input_size % 16 == 0:
            rows = 64
        warps = 4 if entries <= 4096 else 8
    elif tile.itemsize == 4 and entries <= 1024:
        rows, chunk, warps = 32, 64, 4
    else:
        rows, chunk, warps = 16, 64, 8
    return Plan(rows, warps, 1, 1, min(columns, chunk))


def update_plan(sizes: Sizes, tile: torch.dtype) -> UpdatePlan:
    """Of `update_slots`: many programs with little each, since what counts is how long one takes.

    Of plans measured on an H200 the fastest at each of the papers' shapes, or within 2 % of it.
    """
    if tile.itemsize == 2:
        columns = 64 if sizes.slot_size > 64 else 32
        # More rows read a weight less often: they pay once there are more programs than multiprocessors.
        programs = ceil_div(sizes.rows, 16) * ceil_div(sizes.slot_size, columns)
        return UpdatePlan(16 if programs <= 132 else 32, columns, 64, 3, 4)
    return UpdatePlan(16, 16, 128 // tile.itemsize, 1 if tile.itemsize == 8 else 3, 8)


def stores_normed(tile: torch.dtype, input_dtype: torch.dtype) -> bool:
    """Whether the first iteration stores ``x̃``: where it is narrower than what it is made of.

    Later passes then read half the bytes and normalise nothing, at the price of one more write.
    """
    return tile.itemsize < input_dtype.itemsize


@lru_cache(maxsize=1024)
def num_splits(batch: int, num_inputs: int, plan: Plan, num_processors: int) -> int:
    """Programs per image: those that an estimate finds fastest, the fewest of equals.

    Measured on an H200, 2026-11-26, a multiprocessor takes as long for one program as for all that it holds
    at once: each waits for its own memory. What counts is how often all are full, and the tiles of a program.
    """
    tiles = max(ceil_div(num_inputs, plan.rows), 1)
    candidates = sorted(
        {ceil_div(tiles, ceil_div(tiles, s)) for s in range(1, min(tiles, _MOST_SPLITS) + 1)}
    )

    def time(splits: int) -> float:
        waves = ceil_div(batch * splits, num_processors * plan.resident)
        return waves * (ceil_div(tiles, splits) + _TILES_PER_PROGRAM)

    return min(candidates, key=time)


def split_size(num_inputs: int, splits: int, plan: Plan) -> int:
    """Inputs per split: whole tiles."""
    return ceil_div(ceil_div(num_inputs, splits), plan.rows) * plan.rows


@lru_cache(maxsize=1)
def _later_triton() -> bool:
    import triton  # slow, and not there where no kernel runs

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
