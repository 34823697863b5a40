"""What happens before a comparison's first step: kernels are compiled, steps timed and captured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

from fastslots.benchmark.measure.graphs import side_stream
from fastslots.benchmark.measure.memory import memory_use
from fastslots.benchmark.results_file import first_line
from fastslots.benchmark.tables import MIB
from fastslots.comparison.arm import Arm, Plan

CAPTURED = "yes"
REPEATS = 3


class Cost(NamedTuple):
    """Of a step that is no graph."""

    ms: float
    peak_mib: float | None  # beyond what is there before it, gradients included; None on a CPU


def warm_up(arm: Arm, plan: Plan) -> Cost:
    """Takes the steps of a plan eagerly, and again, and says what these cost."""
    with nullcontext() if arm.device.type == "cpu" else side_stream(arm.device):
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
        return f"failed: {first_line(error)}"
    return CAPTURED


def _peak_mib(arm: Arm, plan: Plan) -> float | None:
    if arm.device.type == "cpu":
        return None
    arm.optimizer.zero_grad(set_to_none=True)
    used = memory_use(lambda: arm.run(plan), lambda _: None, arm.device)
    return round(used.peak_bytes / MIB, 2)
