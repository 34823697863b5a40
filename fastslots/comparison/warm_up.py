"""What happens before a comparison's first step: kernels are compiled, steps timed and captured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastslots.comparison.arm import Arm, Plan

CAPTURED = "yes"
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Of a step that is no graph.

    Attributes:
        ms: Time.
        peak_mib: The most memory beyond what is there before it, gradients included; None on a CPU.
    """

    ms: float
    peak_mib: float | None


def warm_up(arm: Arm, plan: Plan) -> Cost:
    """Takes the steps of a plan eagerly, and again, and says what these cost."""
    with _side_stream(arm.device):
        arm.run(plan)  # compiles kernels, makes Adam's state
        peak = _peak_mib(arm, plan)
        return Cost(step_ms(arm, plan), peak)


def step_ms(arm: Arm, plan: Plan) -> float:
    """Takes the steps of a plan a few times and waits for them; returns the least time of one."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        arm.run(plan).cpu()
        times.append(time.perf_counter() - start)
    return round(1e3 * min(times) / len(plan.indices), 4)


def capture(arms: Mapping[str, Arm]) -> str:
    """Captures the steps of all models, or of none; returns `CAPTURED` or why not."""
    try:
        for arm in arms.values():
            arm.capture()
    except RuntimeError as error:
        for arm in arms.values():
            arm.graph = None
        return f"failed: {str(error).strip().splitlines()[0]}"
    return CAPTURED


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """A stream beside the present one, where what comes before a capture should run."""
    if device.type == "cpu":
        yield
        return
    present, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(present)
    with torch.cuda.stream(side):
        yield
    present.wait_stream(side)


def _peak_mib(arm: Arm, plan: Plan) -> float | None:
    if arm.device.type == "cpu":
        return None
    arm.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize(arm.device)
    before = torch.cuda.memory_allocated(arm.device)
    torch.cuda.reset_peak_memory_stats(arm.device)
    arm.run(plan)
    torch.cuda.synchronize(arm.device)
    return round((torch.cuda.max_memory_allocated(arm.device) - before) / 2**20, 2)
