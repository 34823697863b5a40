"""A picture of a comparison: losses, gradient norms, objects found, speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastslots._extras import require
from fastslots.benchmark.attention.reports.plot import COLOURS
from fastslots.comparison.record import POINT, ArmRecord, Comparison
from fastslots.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "comparison.png"
CURVES = (  # column, whether its largest value is drawn too, title
    ("cross_entropy", False, "Cross-entropy of the tokens, nats per image"),
    ("mse", False, "Squared error of the dVAE, per image"),
    ("gradient_norm_slot_attn", True, "Gradient norm of slot attention, before clipping"),
    ("gradient_norm_decoder", True, "Gradient norm of the transformer, before clipping"),
)


def plot_comparison(results: Path, path: Path) -> None:
    """Draws both models' curves.

    Args:
        results: A ``comparison.json``.
        path: PNG file to write; it appears under its name once it is complete.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If `results` is no comparison.
        ImportError: If matplotlib is missing.
    """
    comparison = Comparison.load(results)
    backend = require("matplotlib.backends.backend_agg", "benchmark")
    figure = require("matplotlib.figure", "benchmark").Figure(
        figsize=(13, 7.5), layout="constrained"
    )
    backend.FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3).T.flat)
    for name, arm in comparison.arms.items():
        for axes, (column, with_largest, title) in zip(panels, CURVES, strict=False):
            _draw_curve(axes, name, arm, column, with_largest)
            axes.set_title(title, fontsize=10, loc="left")
        _draw_objects(panels[4], name, arm)
        _draw_speed(panels[5], name, arm)
    panels[5].set_ylim(bottom=0)
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(_title(comparison), fontsize=12, x=0.01, ha="left")
    figure.supxlabel(_where(comparison), fontsize=8, color="0.4", x=0.01, ha="left")
    write_whole(path, lambda unfinished: figure.savefig(unfinished, dpi=120))


def _draw_curve(axes: Axes, name: str, arm: ArmRecord, column: str, with_largest: bool) -> None:
    axes.set_yscale("log")
    if not arm.curve:
        return
    columns = dict(zip(POINT, zip(*arm.curve, strict=True), strict=True))
    axes.plot(columns["step"], columns[column], color=COLOURS[name], lw=1.2, label=name)
    if with_largest:
        largest = columns[f"largest_{column}"]
        axes.plot(columns["step"], largest, color=COLOURS[name], lw=0.5, alpha=0.5)
    if arm.diverged_after is not None:
        axes.axvline(arm.diverged_after, color=COLOURS[name], ls=":")


def _draw_objects(axes: Axes, name: str, arm: ArmRecord) -> None:
    steps = [row["step"] for row in arm.heldout]
    for metric, dashes in (("fg_ari", "-"), ("mean_best_overlap", "--")):
        values = [row[metric] for row in arm.heldout]
        axes.plot(steps, values, color=COLOURS[name], ls=dashes, marker=".")
    axes.set_title("Held-out FG-ARI (line), mBO (dashes)", fontsize=10, loc="left")


def _draw_speed(axes: Axes, name: str, arm: ArmRecord) -> None:
    if arm.chunks:
        _, ends, _, speeds = zip(*arm.chunks, strict=True)
        axes.plot(ends, speeds, color=COLOURS[name], marker=".")
    axes.set_title("Images per second", fontsize=10, loc="left")


def _title(comparison: Comparison) -> str:
    iterations = comparison.arms["unrolled"].model["num_iterations"]
    clip = comparison.settings["clip"]
    return (
        f"SLATE, implicit and unrolled: {iterations} steps of slot attention each, "
        f"clipping {'off' if clip is None else f'at {clip:g}'}, {comparison.steps} training steps"
    )


def _where(comparison: Comparison) -> str:
    place = comparison.environment
    return (
        f"{place['device']}, torch {place['torch']}, {comparison.precision}, "
        f"commit {(place['commit'] or 'unknown')[:10]}, {place['timestamp'][:10]}"
    )
