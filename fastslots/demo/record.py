"""What the demo found: one JSON file, and its table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastslots.benchmark.results_file import ResultsFile, quantile
from fastslots.benchmark.tables import digits, headings_and_cells, markdown_table, mib

FILE = "demo.json"
METRICS = ("fg_ari", "ari", "mean_best_overlap", "squared_error_per_image")
CURVES = ("step", "colour_error", "gradient_l2_norm_main", "squared_error", "slots_used")
LAST = 5
"""Lines of the log whose mean stands for the end of a training."""


@dataclass(frozen=True)
class ArmRow:
    """One training, and its model on held-out scenes.

    Attributes:
        case: ``"implicit"`` or ``"unrolled"``.
        model: The model's settings.
        recipe: The recipe's numbers.
        step_ms: Of a training step, the median over the log.
        kept_bytes: What a step's forward keeps for its backward.
        curve: Lines of the log, the numbers that `CURVES` names.
        num_images: Held-out scenes.
        metrics: Mean and standard error over these, by name; masks are the decoder's.
    """

    case: str
    model: dict[str, Any]
    recipe: dict[str, Any]
    step_ms: float
    kept_bytes: int
    curve: list[list[float]]
    num_images: int
    metrics: dict[str, list[float | None]]

    def at_end(self, name: str) -> float:
        """The mean of one of `CURVES` over the last lines of the log."""
        last = [row[CURVES.index(name)] for row in self.curve[-LAST:]]
        return sum(last) / len(last)


@dataclass(frozen=True)
class DemoResults(ResultsFile[ArmRow]):
    """Both trainings, and where they ran."""

    row_type: ClassVar[type[ArmRow]] = ArmRow


COLUMNS = (
    ("gradient", lambda row: row.case),
    ("FG-ARI", lambda row: _mean(row, "fg_ari", "{:.3f}")),
    ("ARI", lambda row: _mean(row, "ari", "{:.3f}")),
    ("mBO", lambda row: _mean(row, "mean_best_overlap", "{:.3f}")),
    ("error per image", lambda row: _mean(row, "squared_error_per_image", "{:.1f}")),
    ("loss", lambda row: f"{row.at_end('colour_error'):.3f}"),
    ("gradient norm", lambda row: f"{row.at_end('gradient_l2_norm_main'):.2f}"),
    ("ms per step", lambda row: digits(row.step_ms)),
    ("MiB kept", lambda row: mib(row.kept_bytes)),
)
LEGEND = (
    "Held-out scenes: how well the decoder's masks agree with the objects (1: wholly), squared error of an "
    "image in [0, 1]. Training: loss and norm of the whole gradient before clipping at the end, a step's "
    "time, and what its forward keeps for the backward."
)


def demo_markdown(results: DemoResults) -> str:
    """The table in Markdown, and what it says."""
    return f"{markdown_table(*headings_and_cells(COLUMNS, results.rows), num_left=1)}\n\n{LEGEND}"


def read_log(run: Path) -> tuple[list[list[float]], float]:
    """The `CURVES` of a run, and the median milliseconds of its steps.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is no run's.
    """
    batch_size = json.loads((run / "config.json").read_text())["recipe"]["batch_size"]
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if row["kind"] == "train"]
    curve = [[row[name] for name in CURVES] for row in rows]
    return curve, quantile((1e3 * batch_size / row["images_per_second"] for row in rows), 50)


def finite_numbers(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same in JSON, which has no infinity: None."""
    infinite = {n for n, v in recipe.items() if isinstance(v, float) and math.isinf(v)}
    return recipe | dict.fromkeys(infinite)


def _mean(row: ArmRow, metric: str, form: str) -> str:
    found = row.metrics.get(metric)
    return "-" if found is None or found[0] is None else form.format(found[0])
