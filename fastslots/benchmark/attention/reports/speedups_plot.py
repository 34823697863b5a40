"""A picture of speed-ups over the usual forms, and the share of a copy's bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastslots.benchmark.attention.reports.speedups import OURS, Speedups, speedups
from fastslots.benchmark.attention.results import Results
from fastslots.benchmark.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    QUIET,
    VERMILION,
    figure,
    finish_panel,
)
from fastslots.benchmark.tables import environment_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {  # by baseline
    "unrolled, eager": VERMILION,
    "eager": ORANGE,
    "graph": PURPLE,
    "compiled": BLUE,
    "control": GREEN,
}
SHARE_COLOURS = {"triton + graph": BLUE, "torch + graph": GREEN, "reference + graph": ORANGE}


def plot_speedups(results: Results, path: Path) -> None:
    """Draws speed-ups of training steps and of forwards, and the forwards' share of a copy's bandwidth.

    Every case is drawn at the greatest number of iterations at which it was compiled, or else measured.

    Args:
        results: Of one part or several.
        path: PNG file to write; it appears under its name once it is complete.

    Raises:
        ValueError: If the fused kernels were not measured.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.
    """
    chosen = _one_per_case(speedups(results))
    if not chosen:
        raise ValueError(
            f"results must hold rows of {OURS!r}; got {len(results.rows)} rows of others"
        )
    height = 1.9 + 0.55 * max(len(found) for found in chosen.values())
    with figure(path, 15, height, footer=environment_line(results.environment)) as drawn:
        step, forward, share = drawn.subplots(1, 3)
        _bars(step, chosen.get("implicit", []), "Training step (implicit), speed-up over")
        _bars(forward, chosen.get("no-grad", []), "Forward, T iterations, speed-up over")
        _shares(share, results, chosen.get("no-grad", []))


def _one_per_case(found: Sequence[Speedups]) -> dict[str, list[Speedups]]:
    """By gradient, one of every case."""
    best: dict[tuple[str, str], Speedups] = {}
    for one in found:
        key = one.row.gradient, one.row.case
        measured = one.over["graph"] is not None  # not where growth alone was
        if measured and (key not in best or _rank(one) > _rank(best[key])):
            best[key] = one
    chosen: dict[str, list[Speedups]] = {}
    for (gradient, _), one in best.items():
        chosen.setdefault(gradient, []).append(one)
    return chosen


def _rank(found: Speedups) -> tuple[bool, int]:
    return found.over["compiled"] is not None, found.row.iterations


def _bars(axes: Axes, found: Sequence[Speedups], title: str) -> None:
    names = [name for name in COLOURS if any(one.over[name] is not None for one in found)]
    series = {name: [one.over[name] for one in found] for name in names}
    _grouped(axes, title, found, series, COLOURS)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")


def _shares(axes: Axes, results: Results, found: Sequence[Speedups]) -> None:
    rows = {(row.case, row.provider, row.gradient, row.iterations): row for row in results.rows}
    series: dict[str, list[float | None]] = {}
    for provider in SHARE_COLOURS:
        of_provider = [
            rows.get((one.row.case, provider, "no-grad", one.row.iterations)) for one in found
        ]
        series[provider] = [row.share_of_copy if row else None for row in of_provider]
    title = "Forward: inputs read, share of copy bandwidth"
    _grouped(axes, title, found, series, SHARE_COLOURS)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _grouped(
    axes: Axes,
    title: str,
    found: Sequence[Speedups],
    series: dict[str, list[float | None]],
    colours: dict[str, str],
) -> None:
    """Horizontal bars, one group per case, one bar per series that has a value there."""
    series = {name: values for name, values in series.items() if any(values)}
    thickness = 0.8 / max(len(series), 1)
    for index, (name, values) in enumerate(series.items()):
        places = [place + (index + 0.5) * thickness - 0.4 for place in range(len(found))]
        present = [(p, v) for p, v in zip(places, values, strict=True) if v is not None]
        if present:
            heights, widths = zip(*present, strict=True)
            axes.barh(heights, widths, thickness, color=colours[name], label=name)
    axes.axvline(1, color=QUIET, linewidth=1)
    labels = [f"{one.row.case}\nT = {one.row.iterations}" for one in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.invert_yaxis()
    finish_panel(axes, title, grid="x")
    if axes.has_data():
        axes.legend(
            fontsize=8, frameon=False, ncols=5, loc="upper left", bbox_to_anchor=(-0.02, -0.08)
        )
