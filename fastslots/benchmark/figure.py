"""One canvas for all plots: size, title, footer, colours, and what every panel has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastslots._extras import require
from fastslots.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette.
BLUE, GREEN, ORANGE, PURPLE, VERMILION = "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#D55E00"
GRADIENT_COLOURS = {"unrolled": VERMILION, "implicit": BLUE, "no-grad": GREEN}
QUIET = "0.4"  # of what is not data


@contextmanager
def figure(
    path: Path, width: float, height: float, *, footer: str, title: str = ""
) -> Iterator[Figure]:
    """A figure to draw on, in inches, which is written at the end.

    Args:
        path: PNG file; it appears under its name once it is complete.
        width: Of the figure.
        height: Of the figure.
        footer: Where it was measured.
        title: Of the whole.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    backend = require("matplotlib.backends.backend_agg", "benchmark")
    drawn: Figure = require("matplotlib.figure", "benchmark").Figure(
        figsize=(width, height), layout="constrained"
    )
    backend.FigureCanvasAgg(drawn)
    if title:
        drawn.suptitle(title, fontsize=13, x=0.01, ha="left")
    drawn.supxlabel(footer, fontsize=8, color=QUIET, x=0.01, ha="left")
    yield drawn
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: drawn.savefig(unfinished, dpi=130))


def finish_panel(axes: Axes, title: str, grid: Literal["x", "y", "both"] = "both") -> None:
    """Gives a panel its title, and a grid behind what is drawn."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
