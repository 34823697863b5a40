"""What the demo trains: one model by two gradients, each with the numbers that suit it best."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ITERATIONS = 3
"""Of the implicit arm, which takes a tracked step after them; unrolled, this is one more iteration."""
MORE_ITERATIONS = 8
"""The same, of the models when they are measured once more."""
UNROLLED_STEPS = 1_400
"""What fits into the time of the implicit arm's steps."""


@dataclass(frozen=True)
class Arm:
    """One of the trainings.

    Attributes:
        name: What it is called, and its folder.
        flags: Of ``fastslots train``.
    """

    name: str
    flags: tuple[str, ...]


IMPLICIT = ("--num-iterations", str(ITERATIONS))
UNROLLED = (
    *("--gradient", "unrolled", "--init-gradient", "none"),
    *("--num-iterations", str(ITERATIONS + 1), "--steps", str(UNROLLED_STEPS)),
)
# Of the rates and clippings that benchmarks/demo_tuning.py tried for the unrolled arm, the other one's rate
# with this clipping was best.
ARMS = (
    Arm("implicit", IMPLICIT),
    Arm("unrolled", (*UNROLLED, "--clip", "0.1")),
)
# For a dry run: what takes seconds.
TINY = {
    "image-size": 16,
    "width": 8,
    "slot-size": 8,
    "mlp-hidden-size": 8,
    "num-scenes": 16,
    "steps": 4,
    "batch-size": 4,
    "validate-every": 4,
    "validation-images": 2,
    "log-every": 2,
}


def train_command(arm: Arm, run: Path, seed: int, *, tiny: bool = False) -> list[str]:
    """What trains an arm into a run folder."""
    common = ["--model", "autoencoder", "--settings", "cpu", "--device", "cpu", "--seed", str(seed)]
    small = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    program = [sys.executable, "-m", "fastslots", "train", "--output", str(run)]
    return [*program, *common, *arm.flags, *(small if tiny else [])]
