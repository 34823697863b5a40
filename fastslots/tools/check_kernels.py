"""What `check_kernels` does: compiles the shipped configurations, prints them, names what breaks a rule."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import triton

from fastslots.tools.ahead_of_time import (
    STACK_LIMIT,
    Configuration,
    Resources,
    compile_all,
    faults,
)
from fastslots.tools.machine_code import CHIPS, resident_programs
from fastslots.tools.workloads import ALL, MOST, Uses, record_all

FAST_CHIP = "sm_90"  # of all but `MOST`, where time is short
HEAD = "registers, stack, KiB, programs, waves, instructions"


def title(configuration: Configuration) -> str:
    """A kernel's name, its options that are on, the arguments that it is not given, and its warps."""
    names = [name for name, _ in configuration.signature]
    options = [names[where[0]] for where, value in configuration.constants if value is True]
    absent = [names[where[0]] for where, value in configuration.constants if value is None]
    without = (
        [f"without {', '.join(name.removesuffix('_ptr') for name in absent)}"] if absent else []
    )
    return " ".join([configuration.kernel, *options, *without, f"{configuration.num_warps} warps"])


def table(
    uses: Uses, found: dict[tuple[Configuration, str], Resources | str], chips: Sequence[str]
) -> str:
    """What every configuration takes on every chip, by who uses it."""
    columns = [["", *(f"  {title(configuration)}" for configuration in uses)]]
    for chip in chips:
        cells = [
            _cell(configuration, chip, by_chip.get(chip, {}), found.get((configuration, chip)))
            for configuration, by_chip in uses.items()
        ]
        columns.append([f"{chip}: {HEAD}", *cells])
    widths = [max(map(len, column)) for column in columns]
    head, *rows = (
        " | ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in zip(*columns, strict=True)
    )
    groups: dict[str, list[str]] = {}
    for by_chip, row in zip(uses.values(), rows, strict=True):
        groups.setdefault(", ".join(sorted(set().union(*by_chip.values()))), []).append(row)
    return "\n".join([head, *(line for users, group in groups.items() for line in (users, *group))])


def main(command: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        command: Its arguments. Default: those of the command line.

    Returns:
        0, or 1 if a configuration breaks a rule.
    """
    arguments = _parser().parse_args(command)
    start, chips = time.monotonic(), arguments.arch or list(CHIPS)
    uses = record_all(
        (name, precision, chip)
        for name in arguments.workload or ALL
        for precision in ALL[name].precisions
        for chip in chips
        if not arguments.fast or chip == FAST_CHIP or (name, precision) in MOST
    )
    jobs = [(configuration, chip) for configuration in uses for chip in uses[configuration]]
    found = {}
    compiled = compile_all(jobs, arguments.workers, listing=not arguments.fast)
    for job, resources in zip(jobs, compiled, strict=True):
        found[job] = resources
        if sys.stderr.isatty():
            print(f"\r{len(found)} of {len(jobs)} compiled", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(table(uses, found, chips))
    print(
        f"Triton {triton.__version__}: {len(uses)} configurations, {len(jobs)} compilations, "
        f"{time.monotonic() - start:.0f} s"
    )
    offences = [
        f"{title(configuration)} on {chip} ({', '.join(sorted(uses[configuration][chip]))}): {fault}"
        for (configuration, chip), resources in found.items()
        for fault in faults(resources, chip)
    ]
    for offence in offences:
        print(f"check_kernels: {offence}", file=sys.stderr)
    return int(bool(offences))


def _cell(
    configuration: Configuration, chip: str, users: dict[str, int], found: Resources | str | None
) -> str:
    if not isinstance(found, Resources):
        return "-" if found is None else "does not compile"
    resident = resident_programs(found.registers, found.shared, configuration.num_warps, chip)
    places = resident * CHIPS[chip].multiprocessors
    waves = f"{max(users.values()) / places:.1f}" if places else "-"
    rows = constant(configuration, "BLOCK_N")
    per_row = f"{found.loop * configuration.num_warps / rows:.0f}" if rows and found.loop else "-"
    counts = ", ".join(f"{count} {name}" for name, count in found.instructions.items())
    return (
        f"{found.registers:4} {found.stack:4} {found.shared / 1024:6.1f} {resident:3} {waves:>6} "
        f"{per_row:>5}  {counts}"
    )


def constant(configuration: Configuration, name: str) -> Any:
    """The value of a constexpr argument; None if there is none of that name."""
    names = [argument for argument, _ in configuration.signature]
    return next((v for where, v in configuration.constants if names[where[0]] == name), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_kernels",
        description="Compiles every kernel of slot attention and of the decoder ahead of time, for GPUs "
        "that need not be here, as the workloads below would have it compiled. Prints registers "
        "and bytes of stack of a thread, KiB of shared memory of a program, programs that a "
        "multiprocessor holds, waves in which those of the largest launch pass, instructions of "
        "all warps in the longest loop for a row of the inputs, and numbers of instructions of "
        "the matrix units, of spills (STL, LDL) and of asynchronous copies (LDGSTS).",
        epilog=f"Exit status 1, and a line for each offender, if a kernel does not compile, has more than "
        f"{STACK_LIMIT} bytes of stack or any local memory, or more shared memory than the chip.",
    )
    parser.add_argument("--arch", action="append", choices=CHIPS, help="only this one; repeatable")
    parser.add_argument(
        "--workload", action="append", choices=ALL, help="only this one; repeatable"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="less than half of the time: no instructions, which decide no exit status, and all but the "
        f"papers' shapes in bfloat16 for {FAST_CHIP} alone",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes; default: %(default)s"
    )
    return parser
