"""How fast the device copies."""

from __future__ import annotations

from statistics import median

import torch

from fastslots.benchmark.measure.timing import Stopwatch

COPY_BYTES = 2**30
COPIES = 10


def copy_gb_s(device: torch.device) -> float | None:
    """Bytes read and written per second by a large copy on the device, in GB/s; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    watch = Stopwatch(device)
    for _ in range(COPIES):
        target.copy_(source)
        watch.mark()
    return gb_s(2 * COPY_BYTES, median(watch.laps_ms()))


def gb_s(num_bytes: int, ms: float) -> float:
    """GB/s, 10⁹ bytes each."""
    return num_bytes / ms / 1e6
