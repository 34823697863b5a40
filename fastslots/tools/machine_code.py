"""What the machine code of a kernel tells of its speed: programs that fit, waves, length of its main loop."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

KIB = 1024
WARPS, PROGRAMS, REGISTERS = 64, 32, 65_536  # of a multiprocessor
SCHEDULERS = 4  # of a multiprocessor; each has a quarter of the registers
REGISTER_UNIT = 256  # in which a warp gets them
RESERVED_SHARED, SHARED_UNIT = 1024, 128  # bytes of every program, and in which it gets them


class Chip(NamedTuple):
    """A GPU: NVIDIA's CUDA C++ Programming Guide, compute capabilities.

    Args:
        multiprocessors: Of an A100, an H200 and a B200.
        shared: Bytes of shared memory of a multiprocessor.
        shared_of_program: At most, of one program.
    """

    multiprocessors: int
    shared: int
    shared_of_program: int


CHIPS = {
    "sm_80": Chip(108, 164 * KIB, 163 * KIB),
    "sm_90": Chip(132, 228 * KIB, 227 * KIB),
    "sm_100": Chip(148, 228 * KIB, 227 * KIB),
}


def resident_programs(registers: int, shared: int, warps: int, chip: str) -> int:
    """Programs that a multiprocessor holds at a time.

    Args:
        registers: Of a thread.
        shared: Bytes of a program.
        warps: Of a program.
        chip: A key of `CHIPS`.
    """
    of_warp = _up(32 * registers, REGISTER_UNIT)
    by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = CHIPS[chip].shared // _up(shared + RESERVED_SHARED, SHARED_UNIT)
    return min(PROGRAMS, WARPS // warps, by_registers, by_shared)


def longest_loop(text: str) -> int:
    """Instructions of the longest loop of a listing by cuobjdump; 0 if there is none."""
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.M)
    places = {int(address, 16): number for number, (address, _) in enumerate(code)}
    lengths = [0]
    for address, instruction in code:
        jump = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if jump is not None and int(jump[1], 16) < int(address, 16):
            lengths.append(places[int(address, 16)] - places[int(jump[1], 16)] + 1)
    return max(lengths)


def _up(count: int, unit: int) -> int:
    return math.ceil(count / unit) * unit
