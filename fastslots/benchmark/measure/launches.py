"""Kernels launched on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.profiler import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from fastslots.benchmark.attention.calls import Call
from fastslots.benchmark.attention.providers import Provider

MOST_ITERATIONS_COUNTED = 7


def launches_per_iteration(
    calls: Sequence[Call], device: torch.device
) -> dict[Provider, float | None]:
    """Kernels that each further iteration of a forward launches, by provider.

    The difference between the least and the greatest number of iterations up to 7. A provider measured
    at fewer than two such numbers, and all on a CPU or where the profiler sees no kernel, have None.
    CUDA graphs hold the same kernels, so they are counted without them: count before any graph is
    captured.
    """
    found: dict[Provider, float | None] = {}
    for provider in dict.fromkeys(call.provider for call in calls):
        counted = {
            call.iterations: call
            for call in calls
            if call.provider == provider and call.iterations <= MOST_ITERATIONS_COUNTED
        }
        found[provider] = None
        if len(counted) >= 2 and device.type == "cuda":
            few, many = min(counted), max(counted)
            most = count_kernels(counted[many].compute, device)
            least = count_kernels(counted[few].compute, device)
            if least and most:
                found[provider] = (most - least) / (many - few)
    return found


def count_kernels(run: Callable[[], object], device: torch.device) -> int:
    """Kernels that a function launches on the CUDA device; copies and fills by the driver do not count."""
    # CUDA graphs are captured after profiling: with the profiler's library torn down, or set up again
    # by need, that may fail, and later profiles may be empty.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            run()
            torch.cuda.synchronize()
    return sum(map(is_kernel, profiler.events() or ()))


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is a kernel."""
    return (
        event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
    )
