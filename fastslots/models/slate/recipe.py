"""How SLATE is trained: every number of the recipe, and its schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.models.precision import fast_precision
from fastslots.models.recipe import Recipe, half_cosine

# A GPU gets the paper's settings, the defaults. These are sized for two CPU cores and a few minutes. Objects
# have to be several tokens large for slots to group them: at 32 pixels they are about one. What else it
# takes: tokens of colours that count alike, hot at first, so that more of them are used; a dVAE that has
# learned before slots see its tokens, since slots that divide an image while these are noise stay with that;
# and positions in which neighbours are alike, or slots have hundreds of unrelated codes to learn.
CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 64,
        "vocab_size": 64,
        "d_model": 64,
        "num_decoder_blocks": 2,
        "num_decoder_heads": 4,
        "dropout": 0.0,
        "whiten": True,
        "draw_tokens": False,
        "position_init": "smooth",
        "num_slots": 5,
        "slot_size": 64,
        "mlp_hidden_size": 64,
        "num_iterations": 3,
        "init_gradient": "straight-through",
    },
    "recipe": {
        "steps": 2_000,
        "batch_size": 16,
        "lr_dvae": 3e-3,
        "dvae_steps": 800,
        "lr_main": 1e-3,
        "muon": 13.0,
        "warmup_steps": 100,
        "decay": "cosine",
        "patience": 0,
        "tau_start": 2.0,
        "tau_steps": 560,
        "validate_every": 1_000,
        "validation_images": 128,
        "log_every": 100,
        "precision": fast_precision(),
    },
    "data": {"num_scenes": 3_000, "max_objects": 4, "mirror": False, "cache": "runs/scene-cache"},
}


@dataclass(frozen=True)
class SLATERecipe(Recipe):
    """The paper's recipe, all of whose numbers may be changed; those of any model are `Recipe`'s.

    Args:
        lr_dvae: Learning rate of the dVAE, which has no warm-up.
        lr_main: Peak learning rate of everything else.
        warmup_steps: Steps of linear warm-up to ``lr_main``; 0 for none.
        tau_start: Temperature of the relaxed tokens at the start.
        tau_final: Temperature at the end, reached on a half cosine.
        tau_steps: Steps from the one to the other.
        dvae_steps: Steps, at most half of all, in which the dVAE learns alone, its rate falling to 0 on a
            half cosine; then all else learns, from tokens that mean the same from there on. 0: both at once.
        decay: Of ``lr_main``: ``"none"``, or ``"cosine"``: half a cosine to 0 at the last step.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number breaks its rule, or there is patience beside ``dvae_steps``.

    Source:
        Singh et al. 2022 and the public SLATE code's ``train.py``; Chang et al. 2022, section 5.1.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = (
        *Recipe.may_be_zero,
        *("warmup_steps", "tau_steps", "dvae_steps"),
    )
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Recipe.choices,
        "decay": ("none", "cosine"),
    }
    no_decay: ClassVar[Mapping[str, Any]] = {"decay": "none", "patience": 0}
    since: ClassVar[Mapping[str, Any]] = {**Recipe.since, "dvae_steps": 0, "decay": "none"}

    lr_dvae: float = 3e-4
    lr_main: float = 1e-4
    warmup_steps: int = 30_000
    tau_start: float = 1.0
    tau_final: float = 0.1
    tau_steps: int = 30_000
    dvae_steps: int = 0
    decay: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_final > self.tau_start:
            raise ValueError(
                f"tau_final must be at most tau_start {self.tau_start}; got {self.tau_final}"
            )
        if self.dvae_steps and self.patience:
            raise ValueError(
                "patience must be 0 unless dvae_steps is, whose losses say nothing of what learns later; "
                f"got {self.patience}: set one of them to 0"
            )

    def rates(self, step: int) -> dict[str, float]:
        """Of the dVAE, and of everything else: linear up to its peak, times the decay."""
        alone = min(self.dvae_steps, self.steps // 2)
        if step < alone:
            return {"dvae": self.lr_dvae * half_cosine(step, alone), "main": 0.0}
        step -= alone
        warm = step >= self.warmup_steps
        factor = 1.0 if warm else (step + 1) / self.warmup_steps
        if self.decay == "cosine":
            factor *= half_cosine(step, self.steps - alone)
        return {"dvae": 0.0 if alone else self.lr_dvae, "main": self.lr_main * factor}

    def schedule(self, step: int) -> dict[str, float]:
        """The temperature of the relaxed tokens: a half cosine, then constant."""
        left = half_cosine(step, self.tau_steps)
        return {"tau": self.tau_final + (self.tau_start - self.tau_final) * left}
