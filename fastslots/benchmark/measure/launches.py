"""Kernels launched on the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile


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
