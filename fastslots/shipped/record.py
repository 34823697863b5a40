"""What became of the training of a model that is shipped: one JSON file, and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.benchmark.results_file import ResultsFile
from fastslots.benchmark.tables import Column, environment_line, headings_and_cells, markdown_table

LOSSES = {"SlotAutoencoder": "colour_error", "SLATE": "cross_entropy"}
"""Which curve is kept, by the kind of the model."""
ERRORS = ("squared_error_per_image", "slots_squared_error_per_image")
"""Of the reconstruction through the slots: what each kind of model calls it."""
NATS = ("cross_entropy_nats_per_image", "unigram_entropy_nats_per_image")
"""Of the tokens given the slots, and given nothing but how often each occurs."""
METRICS = ("fg_ari", "ari", "mean_best_overlap", *ERRORS, *NATS)
"""What is kept of an evaluation."""


@dataclass(frozen=True)
class ShippedRow:
    """A training, and its model on held-out scenes with some number of slot attention's iterations.

    Attributes:
        case: The model's name.
        kind: The model's kind.
        num_parameters: Numbers that it has learned.
        command: What trained it.
        config: The settings, data and seed of that, as its run folder has them.
        num_iterations: Of the model that is measured.
        hours: From the first line of the training's log to its last.
        curve: Step and training loss (see `LOSSES`) of every line of the log.
        num_images: Held-out scenes.
        metrics: Mean and standard error over these, by name.
    """

    case: str
    kind: str
    num_parameters: int
    command: str
    config: dict[str, Any]
    num_iterations: int
    hours: float
    curve: list[list[float]]
    num_images: int
    metrics: dict[str, list[float | None]]


@dataclass(frozen=True)
class ShippedResults(ResultsFile[ShippedRow]):
    """A model with the iterations of its training and with those that it is shipped with."""

    row_type: ClassVar[type[ShippedRow]] = ShippedRow


def shipped_markdown(results: ShippedResults) -> str:
    """The table, the command that trained the model, and where it was measured."""
    first = results.rows[0]
    sentence = (
        f"Measured on {first.num_images} held-out scenes; trained for {first.hours:.1f} hours with "
        f"`{first.command}`, seed {first.config['recipe']['seed']}."
    )
    table = markdown_table(*headings_and_cells(_COLUMNS, results.rows), num_left=2)
    return f"{table}\n\n{sentence}\n\n{environment_line(results.environment)}"


def seeds_markdown(results: ShippedResults) -> str:
    """A table of trainings that differ by their seeds, and where they ran."""
    columns = [*_COLUMNS[:1], _SEED, *_COLUMNS[2:]]
    commands = {row.case: row.command for row in results.rows}
    told = [f"{case}: `{command}`" for case, command in commands.items()]
    table = markdown_table(*headings_and_cells(columns, results.rows), num_left=1)
    return "\n\n".join((table, *told, environment_line(results.environment)))


def _metric(*names: str, form: str = "{:.3f}") -> Callable[[ShippedRow], str]:
    """The mean of the first of some metrics that there is."""

    def cell(row: ShippedRow) -> str:
        means = [row.metrics[name][0] for name in names if name in row.metrics]
        return form.format(means[0]) if means else "-"

    return cell


_COLUMNS: tuple[Column[ShippedRow], ...] = (
    ("model", lambda row: row.case),
    ("kind", lambda row: row.kind),
    ("pixels", lambda row: str(row.config["model"]["image_size"])),
    ("slots", lambda row: str(row.config["model"]["num_slots"])),
    ("parameters", lambda row: f"{row.num_parameters:,}"),
    ("training steps", lambda row: f"{row.config['recipe']['steps']:,}"),
    ("iterations", lambda row: str(row.num_iterations)),
    ("FG-ARI", _metric("fg_ari")),
    ("ARI", _metric("ari")),
    ("mBO", _metric("mean_best_overlap")),
    ("error per image", _metric(*ERRORS, form="{:.1f}")),
    ("cross-entropy", _metric(NATS[0], form="{:.0f}")),
    ("unigram", _metric(NATS[1], form="{:.0f}")),
)
_SEED: Column[ShippedRow] = ("seed", lambda row: str(row.config["recipe"]["seed"]))
