"""A picture of a comparison: losses, gradient norms, objects found, speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastslots.benchmark.figure import GRADIENT_COLOURS, figure, finish_panel
from fastslots.benchmark.tables import environment_line
from fastslots.comparison.record import POINT, ArmRecord, Comparison

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
    footer = f"{comparison.precision} on {environment_line(comparison.environment)}"
    with figure(path, 14, 7.5, title=_title(comparison), footer=footer) as drawn:
        panels = [*drawn.subplots(2, 3).T.flat]
        *curves, objects, speed = panels
        for name, arm in comparison.arms.items():
            for axes, (column, with_largest, _) in zip(curves, CURVES, strict=True):
                _draw_curve(axes, name, arm, column, with_largest)
            _draw_objects(objects, name, arm)
            _draw_speed(speed, name, arm)
        speed.set_ylim(bottom=0)
        titles = [title for _, _, title in CURVES]
        titles += ["Held-out FG-ARI (line), mBO (dashes)", "Images per second"]
        for axes, title in zip(panels, titles, strict=True):
            finish_panel(axes, title)
            axes.set_xlabel("step", fontsize=8)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right upper", frameon=False)


def _draw_curve(axes: Axes, name: str, arm: ArmRecord, column: str, with_largest: bool) -> None:
    axes.set_yscale("log")
    if not arm.curve:
        return
    columns = dict(zip(POINT, zip(*arm.curve, strict=True), strict=True))
    axes.plot(columns["step"], columns[column], color=GRADIENT_COLOURS[name], lw=1.2, label=name)
    if with_largest:
        largest = columns[f"largest_{column}"]
        axes.plot(columns["step"], largest, color=GRADIENT_COLOURS[name], lw=0.5, alpha=0.5)
    if arm.diverged_after is not None:
        axes.axvline(arm.diverged_after, color=GRADIENT_COLOURS[name], ls=":")


def _draw_objects(axes: Axes, name: str, arm: ArmRecord) -> None:
    steps = [row["step"] for row in arm.heldout]
    for metric, dashes in (("fg_ari", "-"), ("mean_best_overlap", "--")):
        values = [row[metric] for row in arm.heldout]
        axes.plot(steps, values, color=GRADIENT_COLOURS[name], ls=dashes, marker=".")


def _draw_speed(axes: Axes, name: str, arm: ArmRecord) -> None:
    if arm.chunks:
        _, ends, _, speeds = zip(*arm.chunks, strict=True)
        axes.plot(ends, speeds, color=GRADIENT_COLOURS[name], marker=".")


def _title(comparison: Comparison) -> str:
    iterations = comparison.arms["unrolled"].model["num_iterations"]
    clip = comparison.settings["clip"]
    return (
        f"SLATE, implicit and unrolled: {iterations} steps of slot attention each, "
        f"clipping {'off' if clip is None else f'at {clip:g}'}, {comparison.steps} training steps"
    )
