"""A comparison as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastslots.benchmark.tables import known, markdown_table, terminal_table
from fastslots.comparison.record import POINT, ArmRecord, Comparison

if TYPE_CHECKING:
    from rich.table import Table

EVALUATED = (  # metric, digits behind the point, heading
    ("cross_entropy_nats_per_image", 1, "cross-entropy"),
    ("dvae_squared_error_per_image", 2, "dVAE error"),
    ("fg_ari", 3, "FG-ARI"),
    ("ari", 3, "ARI"),
    ("mean_best_overlap", 3, "mBO"),
)
HEADINGS = ("gradient", "steps", "images/s", "ms/step", "peak MiB", "norm", "largest norm")
LEGEND = (
    "Held-out scenes, per image: nats of the tokens, squared error of the dVAE, how well attention finds the "
    "objects (± standard error). norm: of slot attention's gradient before clipping, mean of the last tenth "
    "of the steps; largest: of all. peak: of a step that is no graph, beyond weights and Adam's state."
)


def markdown(comparison: Comparison) -> str:
    """The table, and what its columns mean."""
    return f"{markdown_table(*_headings_and_cells(comparison), num_left=1)}\n\n{LEGEND}"


def comparison_table(comparison: Comparison) -> Table:
    """The table for a terminal."""
    return terminal_table("", *_headings_and_cells(comparison), num_left=1)


def _headings_and_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    headings = [*HEADINGS, *(heading for _, _, heading in EVALUATED)]
    size = comparison.settings["batch_size"]
    return headings, [_row(name, arm, size) for name, arm in comparison.arms.items()]


def _row(name: str, arm: ArmRecord, batch_size: int) -> list[str]:
    steps = int(arm.chunks[-1][1]) if arm.chunks else 0
    seconds = sum(chunk[2] for chunk in arm.chunks)
    norm, largest = (POINT.index(f"{kind}gradient_norm_slot_attn") for kind in ("", "largest_"))
    last = [point[norm] for point in arm.curve[-max(1, len(arm.curve) // 10) :]]
    diverged = arm.diverged_after
    return [
        name,
        str(steps) if diverged is None else f"diverged after {diverged}",
        f"{steps * batch_size / seconds:.0f}" if seconds else "-",
        f"{1e3 * seconds / steps:.2f}" if steps else "-",
        known(arm.peak_mib, "{:.0f}".format),
        f"{sum(last) / len(last):.3g}" if last else "-",
        f"{max(point[largest] for point in arm.curve):.3g}" if last else "-",
        *(_score(arm.evaluation.get(metric), digits) for metric, digits, _ in EVALUATED),
    ]


def _score(score: list[float | None] | None, digits: int) -> str:
    if score is None or score[0] is None:
        return "-"
    mean, error = score
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
