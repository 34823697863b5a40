"""Bytes that a forward keeps for its backward, and their peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch.autograd.profiler import profile, record_function

_Outputs = TypeVar("_Outputs")
_MARK = "fastslots: forward done"


class MemoryUse(NamedTuple):
    """Bytes beyond those alive before the call."""

    kept_bytes: int  # alive after the forward: its outputs, and what the backward needs
    peak_bytes: int  # the most alive at any time of forward and backward, gradients included


def memory_use(
    forward: Callable[[], _Outputs], backward: Callable[[_Outputs], object], device: torch.device
) -> MemoryUse:
    """Counts the bytes of one forward and backward by the allocator of the device.

    Call both once before: what first calls allocate for good would count. On CUDA, blocks are rounded up
    to the allocator's 512 bytes; on a CPU, bytes are those asked for. What both free that is older than the
    call (an earlier step's gradients) lowers the count on CUDA alone: free it before.

    Args:
        forward: Its result is held until the backward is done.
        backward: Called with that result.
        device: Where both allocate.
    """
    gc.collect()
    if device.type == "cuda":
        return _cuda_memory_use(forward, backward, device)
    return _cpu_memory_use(forward, backward)


def _cuda_memory_use(
    forward: Callable[[], _Outputs], backward: Callable[[_Outputs], object], device: torch.device
) -> MemoryUse:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    outputs = forward()
    kept = torch.cuda.memory_allocated(device) - before
    backward(outputs)
    return MemoryUse(kept, torch.cuda.max_memory_allocated(device) - before)


def _cpu_memory_use(
    forward: Callable[[], _Outputs], backward: Callable[[_Outputs], object]
) -> MemoryUse:
    # Its log has nothing to say here, and goes to stderr. It reads this when first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as profiler:
        outputs = forward()
        with record_function(_MARK):
            pass
        backward(outputs)
    events = _descendants(profiler.kineto_results.experimental_event_tree())
    alive: dict[int, int] = {}  # bytes by address
    total = kept = peak = 0
    for event in sorted(events, key=lambda event: event.start_time_ns):
        if event.name == _MARK:
            kept = total
        elif event.name == "[memory]":
            block = event.extra_fields
            # What is freed but was not allocated here is older: the profiler may report it, with the size
            # that the address had in an earlier profile.
            if block.alloc_size > 0:
                alive[block.ptr] = block.alloc_size
                total += block.alloc_size
            else:
                total -= alive.pop(block.ptr, 0)
            peak = max(peak, total)
    return MemoryUse(kept, peak)


def _descendants(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _descendants(event.children)
