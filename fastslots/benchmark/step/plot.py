"""A picture of training steps: images per second and peak memory, by case and provider."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastslots.benchmark.figure import GRADIENT_COLOURS, QUIET, figure, finish_panel
from fastslots.benchmark.step.results import StepResults, StepRow
from fastslots.benchmark.tables import MIB, digits, environment_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLIC_COLOUR = "0.6"
PANELS = (
    ("images_per_s", 1.0, "Training, images/s (more is better)"),
    ("peak_bytes", MIB, "Peak memory of forward and backward, MiB (less is better)"),
)


def plot_steps(results: StepResults, path: Path) -> None:
    """Draws a bar for every provider on every case.

    Args:
        results: At least one row.
        path: PNG file to write; it appears under its name once it is complete.

    Raises:
        ValueError: If there is no row.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    if not results.rows:
        raise ValueError("results must hold at least one row; got none")
    row, width = results.rows[0], max(8.0, 4.0 + 0.3 * len(results.rows))
    title = f"A SLATE training step, B {row.batch_size}, {row.precision}"
    footer = environment_line(results.environment)
    with figure(path, width, 8, title=title, footer=footer) as drawn:
        for axes, (column, unit, what) in zip(drawn.subplots(2, 1), PANELS, strict=True):
            draw_panel(axes, results.cases(), column, unit)
            finish_panel(axes, what, grid="y")
        handles, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def draw_panel(axes: Axes, cases: dict[str, list[StepRow]], column: str, unit: float) -> None:
    """A bar for every row, of the row's `column` in `unit`s; says so where that is None."""
    providers = dict.fromkeys(
        (row.provider, row.gradient) for rows in cases.values() for row in rows
    )
    width = 0.85 / len(providers)
    for number, (provider, gradient) in enumerate(providers):
        bars = []
        for index, rows in enumerate(cases.values()):
            place = index + (number - (len(providers) - 1) / 2) * width
            for row in rows:
                if (row.provider, row.gradient) != (provider, gradient):
                    continue
                value = getattr(row, column)
                if value is None:
                    _say_that_nothing_was_counted(axes, place)
                else:
                    bars.append((place, value / unit, row))
        if not bars:
            continue
        places, heights, (row, *_) = zip(*bars, strict=True)
        drawn = axes.bar(
            places,
            heights,
            width,
            color=PUBLIC_COLOUR if row.implementation == "public" else GRADIENT_COLOURS[gradient],
            hatch="///" if row.compiled else None,
            edgecolor="white",
            label=f"{provider}, {gradient}",
        )
        axes.bar_label(
            drawn, [digits(height) for height in heights], fontsize=7, rotation=90, padding=2
        )
    titles = [f"{rows[0].image_size} px\nV {rows[0].vocab_size}" for rows in cases.values()]
    axes.set_xticks(range(len(cases)), titles)
    axes.set_xlim(-0.5, len(cases) - 0.5)  # where no bar is, too
    axes.margins(y=0.15)


def _say_that_nothing_was_counted(axes: Axes, place: float) -> None:
    """In place of a bar: the memory of CUDA graphs is a pool that stays allocated."""
    axes.text(
        place, 0, " not counted", fontsize=7, color=QUIET, rotation=90, ha="center", va="bottom"
    )
