"""Every kernel launch goes through here, so that launches can be recorded instead of run.

A record holds all that a compiler needs: `scripts/check_kernels` makes one with tensors without memory
(``device="meta"``) and compiles it ahead of time; benchmarks count launches with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Launch(NamedTuple):
    """One launch: the jitted kernel, its grid, its arguments by position and its options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]  # tensors, numbers and None, in the kernel's order
    constants: dict[str, Any]  # the constexpr arguments, by name
    num_warps: int
    resident: int = 1  # programs that a multiprocessor is to hold at a time

    def argument(self, name: str) -> Any:
        """One of them, by the kernel's name for it."""
        return self.arguments[self.kernel.arg_names.index(name)]

    def run(self) -> None:
        """Runs it, where a driver of Triton's is."""
        options = compiler_options(self.num_warps, self.resident)
        self.kernel[self.grid](*self.arguments, **self.constants, **options)


_records: list[list[Launch]] = []


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collects the launches made inside instead of running them; results stay uninitialised."""
    _records.append([])
    try:
        yield _records[-1]
    finally:
        _records.pop()


def compiler_options(num_warps: int, resident: int = 1) -> dict[str, Any]:
    """What every kernel is compiled with, so that a multiprocessor has registers for `resident` programs."""
    return {
        "num_warps": num_warps,
        "enable_fp_fusion": True,  # explicit, since Triton's default is about to change
        # Left to itself, the assembler spills a little to memory rather than let fewer programs run at once,
        # and nearly everything where it finds no way to fit.
        "maxnreg": min(255, 65_536 // (32 * num_warps * resident) // 8 * 8),
    }


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int,
    resident: int = 1,
    **constants: Any,
) -> None:
    """Runs a kernel, or records it inside of `record_launches`."""
    one = Launch(kernel, grid, arguments, constants, num_warps, resident)
    if _records:
        _records[-1].append(one)
    else:
        one.run()
