"""What is compared, and how both are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastslots.models.slate import SLATEConfig
from fastslots.settings import check_fields

NUM_HEADS = 4
WARMUP = 0.05  # of all steps
TAU_END = 0.5  # of all steps: from here on tau is what it ends at


@dataclass(frozen=True)
class Settings:
    """The numbers of a comparison, the same for both gradients.

    The model learns in minutes on one GPU; its 3.4 M parameters are a file of 13 MiB.

    Args:
        image_size: Pixels per side.
        vocab_size: Tokens of the dVAE.
        d_model: Width of transformer and slots.
        num_decoder_blocks: Blocks of the transformer.
        num_slots: Slots.
        num_iterations: Iterations of implicit slot attention before its tracked step.
        seed: Decides initial weights, order of the images and every noise.
        num_scenes: Scenes to train on, rendered before the first step; fewer if they take too long.
        num_heldout: Scenes to measure on.
        min_objects: Fewest objects in a scene.
        max_objects: Most objects in a scene.
        mirror: Whether scenes have a mirror.
        batch_size: Images per step.
        lr_dvae: Peak learning rate of the dVAE.
        lr_main: Peak learning rate of everything else.
        tau_start: Temperature of the relaxed tokens at the start.
        tau_final: Temperature from the middle of the training on.
        clip: Largest gradient entry allowed (the L∞ norm over all parameters); inf for no clipping.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number breaks its rule.
    """

    image_size: int = 64
    vocab_size: int = 512
    d_model: int = 192
    num_decoder_blocks: int = 4
    num_slots: int = 6
    num_iterations: int = 7
    seed: int = 0
    num_scenes: int = 40_000
    num_heldout: int = 320
    min_objects: int = 3
    max_objects: int = 5
    mirror: bool = False
    batch_size: int = 32
    lr_dvae: float = 1e-3
    lr_main: float = 4e-4
    tau_start: float = 1.0
    tau_final: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero=("seed",), may_be_infinite=("clip",))
        self.configs()

    def configs(self) -> dict[str, SLATEConfig]:
        """The two models by name, which compute the same function.

        Implicit slot attention takes a tracked step after its iterations: unrolled it is one more of these.
        """
        implicit = SLATEConfig(
            image_size=self.image_size,
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            num_decoder_blocks=self.num_decoder_blocks,
            num_decoder_heads=NUM_HEADS,
            dropout=0.0,
            num_slots=self.num_slots,
            slot_size=self.d_model,
            mlp_hidden_size=self.d_model,
            num_iterations=self.num_iterations,
        )
        steps = self.num_iterations + 1
        unrolled = replace(implicit, gradient="unrolled", num_iterations=steps)
        return {"implicit": implicit, "unrolled": unrolled}

    def schedule(self, step: int, steps: int) -> tuple[float, float]:
        """Of a step from 0: the factor of the learning rates, and tau.

        The factor is a linear warm-up, then half a cosine down to 0; tau half a cosine, then constant.
        """
        warm, hot = max(1, round(WARMUP * steps)), max(1, round(TAU_END * steps))
        factor = (step + 1) / warm if step < warm else _half_cosine(step - warm, steps - warm)
        tau = self.tau_start - self.tau_final
        return factor, self.tau_final + tau * _half_cosine(min(step, hot), hot)


def _half_cosine(place: int, length: int) -> float:
    """From 1 at 0 to 0 at `length`."""
    return 0.5 * (1 + math.cos(math.pi * place / max(1, length)))
