"""A picture of speed-ups over the usual forms, and the share of a copy's bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastslots._extras import require
from fastslots.benchmark.attention.reports.speedups import OURS, Speedups, speedups
from fastslots.benchmark.attention.reports.tables import environment_line
from fastslots.benchmark.attention.results import Results
from fastslots.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colour-blind-safe palette, by baseline.
COLOURS = {
    "unrolled, eager": "#D55E00",
    "eager": "#E69F00",
    "graph": "#CC79A7",
    "compiled": "#0072B2",
    "control": "#009E73",
}
SHARE_COLOURS = {
    "triton + graph": "#0072B2",
    "torch + graph": "#009E73",
    "reference + graph": "#E69F00",
}


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
    backend = require("matplotlib.backends.backend_agg", "benchmark")
    height = 1.9 + 0.55 * max(len(found) for found in chosen.values())
    figure = require("matplotlib.figure", "benchmark").Figure(
        figsize=(15, height), layout="constrained"
    )
    backend.FigureCanvasAgg(figure)
    step, forward, share = figure.subplots(1, 3)
    _bars(step, chosen.get("implicit", []), "Training step (implicit), speed-up over")
    _bars(forward, chosen.get("no-grad", []), "Forward, T iterations, speed-up over")
    _shares(share, results, chosen.get("no-grad", []))
    figure.supxlabel(
        environment_line(results.environment), fontsize=8, color="0.4", x=0.01, ha="left"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=130))


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
    _grouped(axes, [_label(one) for one in found], series, COLOURS)
    axes.set_title(title, fontsize=11, loc="left")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")


def _shares(axes: Axes, results: Results, found: Sequence[Speedups]) -> None:
    rows = {(row.case, row.provider, row.gradient, row.iterations): row for row in results.rows}
    series: dict[str, list[float | None]] = {}
    for provider in SHARE_COLOURS:
        of_provider = [
            rows.get((one.row.case, provider, "no-grad", one.row.iterations)) for one in found
        ]
        series[provider] = [
            row.forward_gb_s / row.copy_gb_s if row and row.forward_gb_s and row.copy_gb_s else None
            for row in of_provider
        ]
    _grouped(axes, [_label(one) for one in found], series, SHARE_COLOURS)
    axes.set_title("Forward: inputs read, share of copy bandwidth", fontsize=11, loc="left")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _label(found: Speedups) -> str:
    return f"{found.row.case}\nT = {found.row.iterations}"


def _grouped(
    axes: Axes,
    labels: Sequence[str],
    series: dict[str, list[float | None]],
    colours: dict[str, str],
) -> None:
    """Horizontal bars, one group per label, one bar per series that has a value."""
    series = {name: values for name, values in series.items() if any(values)}
    thickness = 0.8 / max(len(series), 1)
    for index, (name, values) in enumerate(series.items()):
        places = [place + (index + 0.5) * thickness - 0.4 for place in range(len(labels))]
        present = [(p, v) for p, v in zip(places, values, strict=True) if v is not None]
        if present:
            heights, widths = zip(*present, strict=True)
            axes.barh(heights, widths, thickness, color=colours[name], label=name)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.has_data():
        axes.legend(
            fontsize=8, frameon=False, ncols=5, loc="upper left", bbox_to_anchor=(-0.02, -0.08)
        )
