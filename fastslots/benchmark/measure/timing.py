"""Times of several pieces of work, taken in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch

from fastslots_kernels.checks import check_count, check_number

LEAST_ROUNDS = 3
L2_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU

_Measured = TypeVar("_Measured")


class Stopwatch:
    """Times between marks; on CUDA, by the device's own clock. Starts when made.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """Ends a lap. Waits for nothing."""
        if self._stream is None:
            self._times.append(time.perf_counter())
        else:
            self._events.append(self._stream.record_event(torch.cuda.Event(enable_timing=True)))

    def laps_ms(self) -> list[float]:
        """All laps, in ms; waits for their end."""
        if self._stream is None:
            return [1e3 * (end - start) for start, end in pairwise(self._times)]
        self._events[-1].synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(self._events)]


def take_turns(
    measure: Sequence[Callable[[], _Measured]], repeats: int, time_limit_s: float
) -> list[list[_Measured]]:
    """Takes every measurement once per round, so that what slows the machine down hits all alike.

    Every other round runs backwards. Call each before: nothing is warmed up here.

    Args:
        measure: Takes a measurement each.
        repeats: Rounds, at least 3.
        time_limit_s: After 3 rounds, start no new one after this many seconds.

    Returns:
        For each, what was measured, by round.
    """
    measured: list[list[_Measured]] = [[] for _ in measure]
    start = time.perf_counter()
    with _no_garbage_collection():
        for round_ in range(max(repeats, LEAST_ROUNDS)):
            if round_ >= LEAST_ROUNDS and time.perf_counter() - start > time_limit_s:
                break
            order = list(enumerate(measure))
            for index, one in order if round_ % 2 == 0 else reversed(order):
                measured[index].append(one())
    return measured


def check_limits(repeats: int, **limits: float) -> None:
    """Checks what bounds a measurement.

    Raises:
        TypeError: If one is no number.
        ValueError: If repeats is less than 3 or a limit is negative.
    """
    check_count("repeats", repeats, LEAST_ROUNDS)
    for name, limit in limits.items():
        check_number(name, limit, least=0, finite=False)


def flush_l2(device: torch.device) -> None:
    """Leaves nothing of earlier work in the L2 cache of a GPU."""
    if device.type == "cuda":
        torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
