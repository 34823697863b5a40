"""The training of a model that is shipped."""

from __future__ import annotations

from pathlib import Path

from fastslots.benchmark.figure import BLUE, figure, finish_panel
from fastslots.benchmark.tables import environment_line
from fastslots.shipped.record import LOSSES, ShippedResults


def plot_training(results: ShippedResults, path: Path) -> None:
    """Draws the training loss.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    row = results.rows[0]
    with figure(path, 6, 3.6, footer=environment_line(results.environment)) as drawn:
        axes = drawn.subplots()
        axes.plot(*zip(*row.curve, strict=True), color=BLUE, lw=1.4)
        axes.set_yscale("log")
        axes.set_xlabel("training step", fontsize=8)
        finish_panel(axes, f"{row.case}: {LOSSES[row.kind].replace('_', ' ')}")
