"""What `check_kernels` does: compiles the shipped configurations, prints them, names what breaks a rule."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import triton
from ahead_of_time import (
    SHARED_LIMITS,
    STACK_LIMIT,
    Configuration,
    Resources,
    compile_all,
    faults,
)
from kernel_workloads import WORKLOADS, Uses, record_all


def title(configuration: Configuration) -> str:
    """A kernel's name, its options that are on, and its warps."""
    names = [name for name, _ in configuration.signature]
    options = [names[where[0]] for where, value in configuration.constants if value is True]
    return " ".join([configuration.kernel, *options, f"{configuration.num_warps} warps"])


def table(
    uses: Uses, found: dict[tuple[Configuration, str], Resources | str], chips: Sequence[str]
) -> str:
    """What every configuration takes on every chip, by who uses it."""
    columns = [["", *(f"  {title(configuration)}" for configuration in uses)]]
    for chip in chips:
        cells = [_cell(found.get((configuration, chip))) for configuration in uses]
        columns.append([f"{chip}: registers, stack, KiB", *cells])
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
    start, chips = time.monotonic(), arguments.arch or list(SHARED_LIMITS)
    uses = record_all(arguments.workload or list(WORKLOADS), chips)
    jobs = [(configuration, chip) for configuration in uses for chip in uses[configuration]]
    found = {}
    for job, resources in zip(jobs, compile_all(jobs, arguments.workers), strict=True):
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


def _cell(found: Resources | str | None) -> str:
    if not isinstance(found, Resources):
        return "-" if found is None else "does not compile"
    counts = ", ".join(f"{count} {name}" for name, count in found.instructions.items())
    return f"{found.registers:4} {found.stack:4} {found.shared / 1024:6.1f}  {counts}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_kernels",
        description="Compiles every kernel of slot attention ahead of time, for GPUs that need not be "
        "here, as the workloads below would have it compiled. Prints registers and bytes of stack of a "
        "thread, KiB of shared memory of a block, and numbers of instructions of the matrix units, of "
        "spills (STL, LDL) and of asynchronous copies (LDGSTS).",
        epilog=f"Exit status 1, and a line for each offender, if a kernel does not compile, has more than "
        f"{STACK_LIMIT} bytes of stack or any local memory, or more shared memory than the chip.",
    )
    parser.add_argument(
        "--arch", action="append", choices=SHARED_LIMITS, help="only this one; repeatable"
    )
    parser.add_argument(
        "--workload", action="append", choices=WORKLOADS, help="only this one; repeatable"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes; default: %(default)s"
    )
    return parser
