"""How SLATE is trained: every number of the recipe, and its schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastslots.settings import check_fields

PRECISIONS = ("float32", "bf16", "float64")


@dataclass(frozen=True)
class Recipe:
    """The paper's recipe, all of whose numbers may be changed.

    Args:
        steps: Optimiser steps.
        batch_size: Images per step, over all processes.
        accumulation: Parts that a process takes its share of a step's batch in, one after the other; more of
            them need less memory and change no result but its rounding.
        lr_dvae: Learning rate of the dVAE, which has no warm-up.
        lr_main: Peak learning rate of everything else.
        warmup_steps: Steps of linear warm-up to ``lr_main``; 0 for none.
        tau_start: Temperature of the relaxed tokens at the start.
        tau_final: Temperature at the end, reached on a half cosine.
        tau_steps: Steps from the one to the other.
        clip: Largest gradient entry allowed (the L∞ norm over all parameters); inf for no clipping.
        patience: Validations without a better loss after which both learning rates are halved; 0: never.
        validate_every: Steps between validations, each with pictures and a checkpoint.
        validation_images: Images per validation (the whole split if it holds fewer).
        picture_images: Images per picture.
        keep_checkpoints: Checkpoints kept besides the best one.
        log_every: Steps between lines of ``metrics.jsonl``.
        precision: ``"float32"``; ``"bf16"``: mixed, the weights and validations stay float32; or
            ``"float64"``, for checks.
        compile: Whether to compile the training step with ``torch.compile``, for which the first step takes
            minutes on a CPU.
        seed: Decides initial weights, order of the images and every noise.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number breaks its rule.

    Source:
        Singh et al. 2022 and the public SLATE code's ``train.py``; Chang et al. 2022, section 5.1.
    """

    steps: int = 250_000
    batch_size: int = 50
    accumulation: int = 1
    lr_dvae: float = 3e-4
    lr_main: float = 1e-4
    warmup_steps: int = 30_000
    tau_start: float = 1.0
    tau_final: float = 0.1
    tau_steps: int = 30_000
    clip: float = 1.0
    patience: int = 4
    validate_every: int = 1_000
    validation_images: int = 1_000
    picture_images: int = 8
    keep_checkpoints: int = 2
    log_every: int = 50
    precision: str = "float32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            may_be_zero=("seed", "warmup_steps", "tau_steps", "patience"),
            may_be_infinite=("clip",),
            choices={"precision": PRECISIONS},
        )
        if self.tau_final > self.tau_start:
            raise ValueError(
                f"tau_final must be at most tau_start {self.tau_start}; got {self.tau_final}"
            )

    def tau(self, step: int) -> float:
        """Temperature of the relaxed tokens at a step (from 0): a half cosine, then constant."""
        if step >= self.tau_steps:
            return self.tau_final
        progress = 0.5 * (1 + math.cos(math.pi * step / self.tau_steps))
        return self.tau_final + (self.tau_start - self.tau_final) * progress

    def warmup(self, step: int) -> float:
        """Factor of the main learning rate at a step (from 0): linear up to 1."""
        return 1.0 if step >= self.warmup_steps else (step + 1) / self.warmup_steps


@dataclass
class Plateau:
    """Halves the learning rates whenever the validation loss has stagnated.

    Attributes:
        factor: Multiplies both learning rates.
        best: The lowest validation loss so far.
        stagnant: Validations since then.
    """

    factor: float = 1.0
    best: float = math.inf
    stagnant: int = 0

    def update(self, loss: float, patience: int) -> bool:
        """Takes a validation loss; says whether it is the best so far. A `patience` of 0 never halves."""
        if loss < self.best:
            self.best, self.stagnant = loss, 0
            return True
        self.stagnant += 1
        if self.stagnant >= patience > 0:
            self.factor, self.stagnant = self.factor / 2, 0
        return False
