"""What the demo found: one JSON file, and its table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastslots.benchmark.results_file import ResultsFile, quantile
from fastslots.benchmark.tables import digits, markdown_table, mib

FILE = "demo.json"
METRICS = {
    "fg_ari": "{:.3f}",
    "ari": "{:.3f}",
    "mean_best_overlap": "{:.3f}",
    "squared_error_per_image": "{:.1f}",
}
"""What is kept of an evaluation, and how it is written."""
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
        metrics: Mean and standard error over these by name, for each number of steps of slot attention that
            the model was measured with, the tracked one included; masks are the decoder's.
    """

    case: str
    model: dict[str, Any]
    recipe: dict[str, Any]
    step_ms: float
    kept_bytes: int
    curve: list[list[float]]
    num_images: int
    metrics: dict[str, dict[str, list[float | None]]]

    def at_end(self, name: str) -> float:
        """The mean of one of `CURVES` over the last lines of the log."""
        last = [row[CURVES.index(name)] for row in self.curve[-LAST:]]
        return sum(last) / len(last)


@dataclass(frozen=True)
class DemoResults(ResultsFile[ArmRow]):
    """Both trainings, and where they ran."""

    row_type: ClassVar[type[ArmRow]] = ArmRow


HEADINGS = (
    *("gradient", "steps: trained", "measured", "FG-ARI", "ARI", "mBO", "error per image"),
    *("loss", "gradient norm", "ms per step", "MiB kept"),
)
LEGEND = (
    "Steps of slot attention in training, and when the model is measured on held-out scenes: how well the "
    "decoder's masks agree with the objects (1: wholly), squared error of an image in [0, 1]. Training: "
    "loss and norm of the whole gradient before clipping at the end, a training step's time, and what its "
    "forward keeps for the backward."
)


def table_of(results: DemoResults) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a line for each training and number of steps that it was measured with."""
    return list(HEADINGS), [line for row in results.rows for line in _lines(row)]


def demo_markdown(results: DemoResults) -> str:
    """The table in Markdown, and what it says."""
    return f"{markdown_table(*table_of(results), num_left=1)}\n\n{LEGEND}"


def _lines(row: ArmRow) -> list[list[str]]:
    trained = min(row.metrics, key=int)
    training = [
        f"{row.at_end('colour_error'):.3f}",
        f"{row.at_end('gradient_l2_norm_main'):.2f}",
        digits(row.step_ms),
        mib(row.kept_bytes),
    ]
    lines = []
    for measured, metrics in row.metrics.items():
        scores = [_mean(metrics, name, form) for name, form in METRICS.items()]
        if measured == trained:
            lines.append([row.case, trained, measured, *scores, *training])
        else:
            lines.append(["", "", measured, *scores, *[""] * len(training)])
    return lines


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


def _mean(metrics: dict[str, list[float | None]], name: str, form: str) -> str:
    found = metrics.get(name)
    return "-" if found is None or found[0] is None else form.format(found[0])
