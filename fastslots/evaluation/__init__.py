"""Measuring a trained model on a whole split of images."""

from fastslots.evaluation.measuring import draw_examples, evaluate
from fastslots.evaluation.result import Evaluation, Example, Mean

__all__ = ["Evaluation", "Example", "Mean", "draw_examples", "evaluate"]
