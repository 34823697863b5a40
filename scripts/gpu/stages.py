"""What is run, in which order, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A step of the program, run in processes of its own.

    Args:
        name: Of the stage and its files.
        most_s: Seconds in all.
        module: In this folder, with a function `main` that takes a `Job` and may raise `Skip`. Default:
            the stage's name.
    """

    name: str
    most_s: float
    module: str = ""

    @property
    def source(self) -> str:
        """Name of the module."""
        return self.module or self.name


FIRST = (
    Stage("smoke", 60),
    Stage("times", 80),
    Stage("unit_tests", 120),
    Stage("attention", 60),
    Stage("kernels", 30),
    Stage("tune", 90),
    Stage("counters", 60),
)
SECOND = (
    Stage("smoke_again", 40, "smoke"),
    Stage("unit_tests_again", 90, "unit_tests"),
    Stage("times_again", 60, "times"),
    Stage("kernels_again", 20, "kernels"),
    Stage("compile", 110),
    Stage("baselines", 110),
    Stage("flat", 45),
    Stage("slate", 60),
    Stage("slate_compiled", 240, "slate"),
    Stage("memcheck", 45),
    Stage("train", 600),
)
CALLS = {"first": FIRST, "second": SECOND}
STAGES = {stage.name: stage for stage in FIRST + SECOND}
