"""How the inputs are cut into tiles and programs: tiles from a table, splits from a model of the chip."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from fastslots_kernels.fused.sizes import Sizes, padded

# Instructions that a scheduler issues per cycle: what one warp alone leaves of its latencies, and at most.
_ISSUED_BY_A_WARP = 0.3
_MOST_ISSUED = 0.85
# What a program costs besides its tiles, in tiles: keys read, sums written, and read by the slot update.
_TILES_PER_PROGRAM = 1.0
_MOST_SPLITS = 1024


class Plan(NamedTuple):
    """How a kernel that passes over the inputs is run."""

    rows: int  # of a tile, a power of two
    warps: int
    stages: int  # tiles on their way at a time
    resident: int  # programs that a multiprocessor holds at a time
    chunk: int = 0  # columns of the inputs' gradient made at once; 0: the kernel makes none


class UpdatePlan(NamedTuple):
    """How the slot update is run: rows and columns of a program, and chunks of sums over columns."""

    rows: int
    columns: int
    chunk: int
    stages: int  # chunks of weights on their way at a time
    warps: int

    def row_tiles(self, rows: int) -> int:
        """Programs for rows of slots."""
        return _ceil(rows, self.rows)

    def column_blocks(self, columns: int) -> int:
        """Programs for columns."""
        return _ceil(columns, self.columns)


# Of 16-bit tiles: kernel, bytes of an input, columns and virtual slots as padded.
_TABLE: dict[tuple[str, int, int, int], Plan] = {
    ("raw", 4, 64, 16): Plan(64, 4, 3, 4),
    ("raw", 4, 256, 16): Plan(32, 4, 3, 2),
    ("normed", 2, 64, 16): Plan(64, 4, 3, 4),
    ("normed", 2, 256, 16): Plan(64, 4, 3, 3),
    ("backward", 4, 64, 16): Plan(64, 4, 1, 2, 64),
    ("backward", 4, 256, 16): Plan(32, 4, 1, 2, 64),
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
    if tile.itemsize == 2:
        kernel = "normed" if normed else "raw"
        found = _TABLE.get((kernel, input_dtype.itemsize, columns, virtual))
        # Rows that are not aligned take an address per entry.
        aligned = sizes.input_size % 16 == 0
        if found is not None and aligned:
            return found
        rows = 64 if columns <= 128 and aligned else 32
        warps = 4 if columns <= 256 and virtual <= 32 else 8
        stages = 3 if columns * input_dtype.itemsize <= 1024 else 2
        return Plan(rows, warps, stages, 2)
    rows = 32 if tile.itemsize == 4 and virtual <= 32 else 16
    return Plan(rows, 8, 1, 1)


def backward_plan(
    sizes: Sizes, tile: torch.dtype, input_dtype: torch.dtype, precision: str
) -> Plan:
    """Of `attend_backward`; arguments as in `attend_plan`, and the precision of float32's products."""
    columns, virtual = padded(sizes.input_size), padded(sizes.virtual)
    entries = columns * virtual
    if tile.itemsize == 2:
        found = _TABLE.get(("backward", input_dtype.itemsize, columns, virtual))
        if found is not None and sizes.input_size % 16 == 0:
            return found
        rows, chunk = 32 if columns <= 256 and entries <= 8192 else 16, 64
        warps = 4 if entries <= 4096 else 8
        stages = 2 if entries * input_dtype.itemsize <= 16_384 else 1
    elif tile.itemsize == 4 and entries <= 1024:
        rows, chunk, warps, stages = 32, 64, 4, 1
    else:
        # Without matrix units, a product holds its factors in registers.
        narrow = tile.itemsize == 4 and precision == "ieee" and entries > 2048
        rows, chunk, warps, stages = 16, 16 if narrow else 32, 8, 1
    return Plan(rows, warps, stages, 1, min(columns, chunk))


def update_plan(sizes: Sizes, tile: torch.dtype) -> UpdatePlan:
    """Of `update_slots`: many programs with little each, since what counts is how long one takes.

    Of plans measured on an H200 the fastest at each of the papers' shapes, or within 2 % of it.
    """
    if tile.itemsize == 2:
        columns = 64 if sizes.slot_size > 64 else 32
        # More rows read a weight less often: they pay once there are more programs than multiprocessors.
        programs = _ceil(sizes.rows, 16) * _ceil(sizes.slot_size, columns)
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

    The busiest multiprocessor works on its programs at once, as many as it holds, and the more warps they
    have the better these hide one another's latencies.
    """
    tiles = _ceil(num_inputs, plan.rows)
    most = min(max(tiles, 1), _MOST_SPLITS)
    candidates = sorted({_ceil(tiles, _ceil(max(tiles, 1), s)) for s in range(1, most + 1)} - {0})

    def time(splits: int) -> float:
        programs, per_program = batch * splits, _ceil(tiles, splits) + _TILES_PER_PROGRAM
        waves, rest = divmod(programs, num_processors * plan.resident)
        found = waves * _busy(plan.resident, plan) + _busy(_ceil(rest, num_processors), plan)
        return per_program * found

    return min(candidates, key=time, default=1)


def split_size(num_inputs: int, splits: int, plan: Plan) -> int:
    """Inputs per split: whole tiles."""
    return _ceil(_ceil(num_inputs, splits), plan.rows) * plan.rows


def _busy(programs: int, plan: Plan) -> float:
    """What a multiprocessor takes for one tile of each of its programs, in cycles per instruction."""
    if programs == 0:
        return 0.0
    warps = programs * plan.warps / 4  # of each of its four schedulers
    return warps / min(_MOST_ISSUED, _ISSUED_BY_A_WARP * warps)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
