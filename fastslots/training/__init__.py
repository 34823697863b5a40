"""Training: the loop, validation and checkpoints of any `fastslots.models.trainable.Trainable`."""

from fastslots.training.checkpoints import find_checkpoint
from fastslots.training.loop import train

__all__ = ["find_checkpoint", "train"]
