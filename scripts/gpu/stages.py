"""What is run, in which order, and for how long."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """A step of the program, run in processes of its own.

    Args:
        name: Of the stage and its files.
        most_s: Seconds in all.
        module: In this package, with a function `main` that takes a `Job` and may raise `Skip`.
    """

    name: str
    most_s: float
    module: str


FIRST = (
    Stage("smoke", 60, "checks.smoke"),
    Stage("times", 80, "timing.attention"),
    Stage("unit_tests", 120, "checks.unit_tests"),
    Stage("attention", 60, "profiling.attention"),
    Stage("kernels", 30, "profiling.kernels"),
    Stage("tune", 90, "profiling.tune"),
    Stage("counters", 60, "profiling.counters"),
)
SECOND = (
    Stage("smoke_again", 40, "checks.smoke"),
    Stage("unit_tests_again", 90, "checks.unit_tests"),
    Stage("times_again", 60, "timing.attention"),
    Stage("kernels_again", 20, "profiling.kernels"),
    Stage("compile", 110, "timing.compile"),
    Stage("baselines", 110, "timing.attention"),
    Stage("flat", 45, "timing.attention"),
    Stage("slate", 60, "timing.slate"),
    Stage("slate_compiled", 240, "timing.slate"),
    Stage("memcheck", 45, "checks.memcheck"),
    Stage("train", 600, "timing.train"),
)
CALLS = {"first": FIRST, "second": SECOND}
STAGES = {stage.name: stage for stage in FIRST + SECOND}
