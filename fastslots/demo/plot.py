"""Both trainings in one figure."""

from __future__ import annotations

from pathlib import Path

from fastslots.benchmark.figure import GRADIENT_COLOURS, figure, finish_panel
from fastslots.benchmark.tables import environment_line
from fastslots.demo.record import CURVES, DemoResults

PANELS = {
    "colour_error": "Loss: squared error of whitened colours",
    "gradient_l2_norm_main": "Norm of the gradient before clipping",
}


def plot_demo(results: DemoResults, path: Path) -> None:
    """Draws loss and gradient norm of both.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    footer = environment_line(results.environment)
    with figure(path, 10, 3.6, footer=footer) as drawn:
        panels = drawn.subplots(1, 2)
        for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
            for row in results.rows:
                steps, values = (
                    [line[CURVES.index(n)] for line in row.curve] for n in ("step", name)
                )
                axes.plot(steps, values, color=GRADIENT_COLOURS[row.case], lw=1.4, label=row.case)
            axes.set_yscale("log")
            axes.set_xlabel("training step", fontsize=8)
            finish_panel(axes, title)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right upper", frameon=False)
