"""Energy of a GPU, by the counter of its driver."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

Counter = Callable[[], float]
LEAST_WINDOW_S = 2.0  # the counter's steps are then a twentieth of it at most
WARM_UP_S = 0.5  # until the power is that of the run, not of what ran before


def energy_counter(device: torch.device) -> Counter | None:
    """Reads the joules that the device has used since the driver was loaded.

    The driver counts in steps of up to 0.1 s.

    Returns:
        The counter; None on a CPU, without nvidia-ml-py, and where the driver does not count.
    """
    if device.type != "cuda":
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def joules_per_run(
    run: Callable[[], object],
    run_ms: float,
    counter: Counter | None,
    synchronize: Callable[[], None],
    window_s: float,
) -> float | None:
    """Joules of one run, the mean over as many as fill the window, which a warm-up precedes.

    Args:
        run: What to run; warm.
        run_ms: How long one takes.
        counter: Of `energy_counter`.
        synchronize: Waits for the end of what was started.
        window_s: How long to run, and no less than 2 s; 0 measures nothing.
    """
    if counter is None or window_s <= 0:
        return None
    runs = math.ceil(1e3 * max(window_s, LEAST_WINDOW_S) / run_ms)
    for _ in range(math.ceil(1e3 * WARM_UP_S / run_ms)):
        run()
    synchronize()
    start = counter()
    for _ in range(runs):
        run()
    synchronize()
    return (counter() - start) / runs
