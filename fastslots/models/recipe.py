"""How models are trained: what the recipes of all of them hold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.settings import check_fields

PRECISIONS = ("float32", "bf16", "float64")


@dataclass(frozen=True)
class Recipe(ABC):
    """Numbers that every model is trained by; a model's own recipe adds its learning rates and schedules.

    The peak rate of a group of parameters is called ``lr_GROUP``.

    Args:
        steps: Optimiser steps.
        batch_size: Images per step, over all processes.
        accumulation: Parts that a process takes its share of a step's batch in, one after the other; more of
            them need less memory and change no result but its rounding.
        muon: Muon for the weight matrices, at so many times the learning rates, and Adam for all else, such
            as embeddings; 0: Adam for all. It works in bfloat16 in any precision, on a CPU without
            instructions for that in float32. A run does not go on with it that began without, nor the other
            way round.
        clip: Largest norm of the whole gradient: of SLATE the L∞ norm (the largest entry), of the autoencoder
            the L2 norm; inf for no clipping.
        patience: Validations without a better loss after which the learning rates are halved; 0: never.
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

    Attributes:
        may_be_zero: Names of the numbers that may be 0.
        choices: What a text may be, by name.
        norm: The order of the norm that `clip` bounds and that is logged.
        no_decay: The numbers that leave the learning rates at their peak.
        added_after: The number after which a command's help has those that a model's own recipe adds.
        since: Numbers that a version before this one did not save, and what they were then.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number breaks its rule.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("seed", "patience", "muon")
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"precision": PRECISIONS}
    norm: ClassVar[float] = math.inf
    no_decay: ClassVar[Mapping[str, Any]] = {"patience": 0}
    added_after: ClassVar[str] = "accumulation"
    since: ClassVar[Mapping[str, Any]] = {"muon": 0.0}

    steps: int = 250_000
    batch_size: int = 50
    accumulation: int = 1
    muon: float = 0.0
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
            may_be_zero=self.may_be_zero,
            may_be_infinite=("clip",),
            choices=self.choices,
        )

    @property
    def norm_name(self) -> str:
        """What the log calls the norm of a gradient, before the name of its group."""
        return f"gradient_{'linf' if math.isinf(self.norm) else f'l{self.norm:g}'}_norm"

    @abstractmethod
    def rates(self, step: int) -> dict[str, float]:
        """The learning rate of every group of parameters at a step (from 0), by the group's name."""

    def schedule(self, step: int) -> dict[str, float]:
        """Whatever else of the losses changes from step to step (from 0), by name."""
        return {}


def half_cosine(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 at the last of `steps`, and 0 from there on."""
    return 0.5 * (1 + math.cos(math.pi * step / steps)) if step < steps else 0.0
