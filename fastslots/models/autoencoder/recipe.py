"""How the slot autoencoder is trained: every number of the recipe, and its schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.models.precision import fast_precision
from fastslots.models.recipe import Recipe, half_cosine

# Of the entropy's steps those before its weight rises: masks that were driven apart before slots stand for
# anything would stay as they happen to be, and so they would if it came long after.
ENTROPY_WAITS = 1 / 3
ENTROPY_MOST = 0.6
"""Share of all steps after which it has risen."""

# A GPU gets Locatello et al.'s settings, the defaults. These are sized for one CPU core and two minutes.
CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 64,
        "backbone": "patches",
        "num_slots": 5,
        "slot_init": "learned",
        "init_gradient": "straight-through",
        "whiten": True,
    },
    "recipe": {
        "steps": 1_700,
        "batch_size": 32,
        "clip": 1.0,
        "lr_main": 1.5e-3,
        "muon": 13.0,
        "warmup_steps": 100,
        "decay": "cosine",
        "entropy": 0.05,
        "entropy_steps": 1_020,
        "validate_every": 850,
        "validation_images": 128,
        "log_every": 50,
        "precision": fast_precision(),
    },
    "data": {"num_scenes": 3_000, "max_objects": 4, "mirror": False, "cache": "runs/scene-cache"},
}


@dataclass(frozen=True)
class SlotAutoencoderRecipe(Recipe):
    """Locatello et al.'s recipe, all of whose numbers may be changed; those of any model are `Recipe`'s.

    Args:
        lr_main: Peak learning rate.
        warmup_steps: Steps of linear warm-up to it; 0 for none.
        decay: ``"exponential"``; ``"cosine"``: half a cosine to 0 at the last step; or ``"none"``.
        half_life: Steps after which the exponential decay has halved the rate.
        entropy: Weight of the masks' entropy, in nats per pixel, in the loss. A little of it (0.05) leaves
            the whole background to one slot. 0: none.
        entropy_steps: Steps, at most six tenths of all, after which this weight has risen in full, from 0 at
            a third of them.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number breaks its rule.

    Source:
        Locatello et al. 2020, appendix E, and the public code's ``train.py``; entropy: this package.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = (*Recipe.may_be_zero, "warmup_steps", "entropy")
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Recipe.choices,
        "decay": ("exponential", "cosine", "none"),
    }
    no_decay: ClassVar[Mapping[str, Any]] = {"decay": "none", "patience": 0}
    norm: ClassVar[float] = 2.0

    steps: int = 500_000
    batch_size: int = 64
    clip: float = math.inf
    patience: int = 0
    lr_main: float = 4e-4
    warmup_steps: int = 10_000
    decay: str = "exponential"
    half_life: int = 100_000
    entropy: float = 0.0
    entropy_steps: int = 30_000

    def rates(self, step: int) -> dict[str, float]:
        """Of everything: linear up to its peak, times the decay."""
        warm = step >= self.warmup_steps
        factor = 1.0 if warm else (step + 1) / self.warmup_steps
        if self.decay == "cosine":
            factor *= half_cosine(step, self.steps)
        elif self.decay == "exponential":
            factor *= 0.5 ** (step / self.half_life)
        return {"main": self.lr_main * factor}

    def schedule(self, step: int) -> dict[str, float]:
        """The weight of the masks' entropy."""
        full = min(self.entropy_steps, ENTROPY_MOST * self.steps)
        risen = (step / full - ENTROPY_WAITS) / (1 - ENTROPY_WAITS)
        return {"entropy_weight": self.entropy * min(1.0, max(0.0, risen))}
