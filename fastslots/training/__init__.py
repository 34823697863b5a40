"""Training SLATE: the recipe, the loop, validation and checkpoints."""

from fastslots.training.checkpoints import find_checkpoint
from fastslots.training.loop import train
from fastslots.training.recipe import Recipe

__all__ = ["Recipe", "find_checkpoint", "train"]
