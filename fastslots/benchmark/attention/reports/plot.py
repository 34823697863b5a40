"""A picture of the paper's Table 1: cost against iterations, unrolled and implicit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastslots._extras import require
from fastslots.benchmark.attention.reports.rows import case_title
from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.figure import GRADIENT_COLOURS, figure, finish_panel
from fastslots.benchmark.tables import MIB, environment_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour: the gradient. Marker: the backend. Dashes: compiled or replayed.
MARKERS = {"reference": "o", "torch": "s", "triton": "^", "slot-attention": "D"}
COMPILED_DASHES, GRAPHED_DASHES = (0, (4, 2)), (0, (1, 1))
# Column, its unit, and the growth that Table 1 claims for a vanilla and an implicit backward.
PANELS = (
    ("forward_ms_p50", 1.0, "Forward time, ms", "O(T) both"),
    ("backward_ms_p50", 1.0, "Backward time, ms", "unrolled O(T), implicit O(1)"),
    ("kept_bytes", MIB, "Kept for the backward, MiB", "unrolled O(T), implicit O(1)"),
    ("peak_bytes", MIB, "Peak memory, MiB", "unrolled O(T), implicit O(1)"),
)
LABEL_GAP = 0.062  # of the panel's height


def plot_case(results: Results, case: str, path: Path) -> None:
    """Draws the four costs of one case against the number of iterations.

    Args:
        results: Holds the case.
        case: Its name.
        path: PNG file to write; it appears under its name once it is complete.

    Raises:
        ValueError: If the results hold no such case.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    rows = results.cases().get(case)
    if not rows:
        raise ValueError(f"case must be one of {tuple(results.cases())}; got {case!r}")
    rows = _worth_a_line(rows)
    title, footer = f"Slot attention, {case_title(rows[0])}", environment_line(results.environment)
    with figure(path, 11, 8, title=title, footer=footer) as drawn:
        panels = drawn.subplots(2, 2, sharex=True)
        for axes, (column, unit, what, claim) in zip(panels.flat, PANELS, strict=True):
            _draw_panel(axes, rows, column, unit)
            finish_panel(axes, f"{what}  ({claim})")
        for axes in panels[1]:
            axes.set_xlabel("iterations T")


def _worth_a_line(rows: Sequence[Row]) -> list[Row]:
    """Leaves out what would crowd the picture: forwards alone, and graphs of what is also drawn eager.

    The fused kernels are drawn both ways. Where nothing is left, all are drawn.
    """
    drawn = [
        row
        for row in rows
        if row.gradient != "no-grad"
        and (row.compiled or row.backend == "triton" or not row.graphed)
    ]
    return drawn or list(rows)


def _draw_panel(axes: Axes, rows: Sequence[Row], column: str, unit: float) -> None:
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        value = getattr(row, column)
        if value is not None:
            line = row.gradient, row.provider
            series.setdefault(line, []).append((row.iterations, value / unit))
            styles[line] = {"color": GRADIENT_COLOURS[row.gradient], "marker": MARKERS[row.backend]}
            if row.compiled or row.graphed:
                styles[line]["linestyle"] = COMPILED_DASHES if row.compiled else GRAPHED_DASHES
    for line, points in series.items():
        axes.plot(*zip(*points, strict=True), linewidth=1.6, markersize=5, **styles[line])
    counts = sorted({row.iterations for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(counts[0] * 0.85, counts[-1] * 1.15)
    ticker = require("matplotlib.ticker", "benchmark")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _label_lines(axes, {key: points[-1] for key, points in series.items()})


def _label_lines(axes: Axes, ends: dict[tuple[str, str], tuple[int, float]]) -> None:
    """Names every line to the right of the panel, at its end's height or the nearest free one."""
    bottom, top = map(math.log, axes.get_ylim())
    ascending = sorted(ends.items(), key=lambda item: item[1][1])
    heights = [(math.log(value) - bottom) / (top - bottom) for _, (_, value) in ascending]
    spread = spread_out(heights, LABEL_GAP)
    for ((gradient, provider), end), height in zip(ascending, spread, strict=True):
        axes.annotate(
            f"{gradient}, {provider}",
            xy=end,
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=GRADIENT_COLOURS[gradient],
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.7, "shrinkB": 4},
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights until neighbours are `gap` apart, keeping the means of those that collide.

    Args:
        heights: In ascending order.
        gap: The least distance.
    """
    groups: list[tuple[float, int]] = []  # centre and size, `gap` apart inside
    for height in heights:
        centre, size = height, 1
        while groups and centre - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            lower, count = groups.pop()
            centre, size = (lower * count + centre * size) / (count + size), count + size
        groups.append((centre, size))
    return [centre + gap * (i - (size - 1) / 2) for centre, size in groups for i in range(size)]
