"""The models that come with the package, and the flags that each was trained with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShippedModel:
    """A model of the package.

    Attributes:
        name: Its folder in ``fastslots/pretrained``.
        flags: Of ``fastslots train``.
        num_iterations: Of the model as it is shipped: more than it was trained with, after which its slots
            have converged further.
    """

    name: str
    flags: tuple[str, ...]
    num_iterations: int

    def train_command(self, run: Path, *, resume: bool) -> list[str]:
        """What trains it into a run folder, or goes on in it."""
        program = [sys.executable, "-m", "fastslots", "train", "--device", "cpu"]
        where = ["--resume" if resume else "--output", str(run)]
        return [*program, *where, *([] if resume else self.flags)]

    @property
    def command(self) -> str:
        """The same as one would type it."""
        return " ".join(["fastslots train", *self.flags, "--device cpu"])


# In front of a mirror, with up to six objects: slots for the background, the objects, and most reflections.
# Learned queries find objects sooner, but in training as long as this the one that has the background has
# painted large objects too; slots drawn from one Gaussian have no such part of their own. The entropy term
# has to come early: before it slots share out the rows of pixels along the edges, and it sharpens that. In
# trainings two or three times as long, of eight slots, an object and its reflection became one slot's: less
# of an error, but reflections are no part of the true masks (mBO 0.6).
MODELS = {
    model.name: model
    for model in (
        ShippedModel(
            "scenes",
            (
                *("--model", "autoencoder", "--settings", "cpu", "--precision", "bf16"),
                *("--num-slots", "11", "--slot-init", "gaussian", "--num-iterations", "5"),
                *("--entropy", "0.05", "--entropy-steps", "5400"),
                *("--max-objects", "6", "--mirror", "--num-scenes", "20000"),
                *("--steps", "10000", "--warmup-steps", "300"),
                *("--validate-every", "1000", "--log-every", "100"),
            ),
            num_iterations=8,
        ),
        ShippedModel(
            "slate",
            (
                *("--model", "slate", "--settings", "cpu", "--precision", "bf16"),
                *("--num-slots", "7", "--max-objects", "6", "--num-scenes", "10000"),
                *("--steps", "6000", "--dvae-steps", "1500", "--tau-steps", "1050"),
                *("--validate-every", "1000", "--log-every", "100"),
            ),
            num_iterations=7,
        ),
    )
}
