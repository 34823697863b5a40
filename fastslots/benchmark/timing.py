"""Times of several calls, taken in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from fastslots.benchmark.calls import Call

LEAST_ROUNDS = 3
L2_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU


class Times(NamedTuple):
    """Of one call, in ms."""

    forward_ms: float
    backward_ms: float

    @property
    def both_ms(self) -> float:
        """Forward and backward."""
        return self.forward_ms + self.backward_ms


def time_in_turns(calls: Sequence[Call], repeats: int, time_limit_s: float) -> list[list[Times]]:
    """Times every call once per round, so that what slows the machine down hits all alike.

    Every other round runs backwards. Call each before: nothing is warmed up here.

    Args:
        calls: What to time.
        repeats: Rounds, at least 3.
        time_limit_s: After 3 rounds, start no new one after this many seconds.

    Returns:
        For each call, its times by round.
    """
    times: list[list[Times]] = [[] for _ in calls]
    start = time.perf_counter()
    with _no_garbage_collection():
        for round_ in range(max(repeats, LEAST_ROUNDS)):
            if round_ >= LEAST_ROUNDS and time.perf_counter() - start > time_limit_s:
                break
            order = list(enumerate(calls))
            for index, call in order if round_ % 2 == 0 else reversed(order):
                times[index].append(_cuda_times(call) if call.on_cuda else _cpu_times(call))
    return times


def _cpu_times(call: Call) -> Times:
    start = time.perf_counter()
    outputs = call.forward()
    middle = time.perf_counter()
    grads = call.backward(outputs)
    end = time.perf_counter()
    del grads
    return Times(1e3 * (middle - start), 1e3 * (end - middle))


def _cuda_times(call: Call) -> Times:
    start, middle, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(3)
    )
    torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=call.problem.inputs.device).zero_()
    start.record()
    outputs = call.forward()
    middle.record()
    grads = call.backward(outputs)
    end.record()
    end.synchronize()
    del grads
    return Times(start.elapsed_time(middle), middle.elapsed_time(end))


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
