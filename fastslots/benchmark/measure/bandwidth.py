"""What a forward must read, and how fast the device copies."""

from __future__ import annotations

from statistics import median

import torch

from fastslots.benchmark.attention.cases import DTYPES, Case
from fastslots.benchmark.attention.providers import Provider
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


def least_bytes(case: Case, provider: Provider, iterations: int) -> int:
    """What a forward reads if nothing of the inputs' size stays on the chip between steps.

    The inputs in every step, or once, to be normalised, and then in every step the normalised ones in
    the type of the products: whichever is less.
    """
    itemsize = DTYPES[case.dtype].itemsize
    products = case.input_bytes // itemsize * (2 if case.precision == "bf16" else itemsize)
    steps = provider.steps(iterations)
    return min(steps * case.input_bytes, case.input_bytes + steps * products)


def gb_s(num_bytes: int, ms: float) -> float:
    """GB/s, 10⁹ bytes each."""
    return num_bytes / ms / 1e6
