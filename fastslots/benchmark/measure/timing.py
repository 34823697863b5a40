"""Times of several calls, taken in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch

from fastslots.benchmark.attention.calls import Call

LEAST_ROUNDS = 3
L2_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU

_Measured = TypeVar("_Measured")


class Times(NamedTuple):
    """Of one call, in ms."""

    forward_ms: float
    backward_ms: float

    @property
    def both_ms(self) -> float:
        """Forward and backward."""
        return self.forward_ms + self.backward_ms


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


def time_in_turns(calls: Sequence[Call], repeats: int, time_limit_s: float) -> list[list[Times]]:
    """Times forward and backward of every call in turns, see `take_turns`.

    Returns:
        By call and round; nothing for a call that ran out of memory.
    """
    found = take_turns([partial(_times_if_it_fits, call) for call in calls], repeats, time_limit_s)
    return [
        [] if None in series else [times for times in series if times is not None]
        for series in found
    ]


def _times_if_it_fits(call: Call) -> Times | None:
    try:
        return _times(call)
    except torch.OutOfMemoryError:
        return None


def _times(call: Call) -> Times:
    if call.device.type == "cuda":
        torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=call.device).zero_()
    watch = Stopwatch(call.device)
    outputs = call.forward()
    watch.mark()
    grads = call.backward(outputs)
    watch.mark()
    times = Times(*watch.laps_ms())
    del grads
    return times


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
