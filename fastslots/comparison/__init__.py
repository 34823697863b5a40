"""Implicit against unrolled SLATE: the same weights, images and steps, with one GPU and few minutes."""

from fastslots.comparison.plot import plot_comparison
from fastslots.comparison.run import compare
from fastslots.comparison.settings import Settings

__all__ = ["Settings", "compare", "plot_comparison"]
