"""Results of training steps as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastslots.benchmark.step.results import StepResults, StepRow
from fastslots.benchmark.tables import (
    Column,
    digits,
    factor,
    headings_and_cells,
    known,
    markdown_report,
    markdown_table,
    mib,
    number,
    skipped_lines,
    terminal_table,
    with_spread,
)

if TYPE_CHECKING:
    from rich.table import Table

LEGEND = (
    "Times are medians of training steps: forward, backward, L∞ clipping, Adam. public: SLATE in the form of "
    "its public code, unrolled, plain Adam. implicit: T iterations without a graph, then one tracked. kept: "
    "alive after the forward beyond model, optimiser and images; peak: of forward and backward. speed-up and "
    "peak / public: against eager public, timed in turns. The parts were timed in rounds of their own."
)


def step_tables(results: StepResults) -> list[Table]:
    """Two rich tables per case: steps, and parts of the forward."""
    return [
        terminal_table(title, headings, cells, num_left=2)
        for rows in results.cases().values()
        for title, headings, cells in _tables(rows)
    ]


def step_markdown(results: StepResults) -> str:
    """The tables in Markdown, with what was left out and where it was measured."""
    tables = [
        markdown_table(headings, cells, num_left=2, title=title)
        for rows in results.cases().values()
        for title, headings, cells in _tables(rows)
    ]
    return markdown_report(tables, skipped_lines(results.skipped), LEGEND, results.environment)


def step_case_title(row: StepRow) -> str:
    """Sizes and precision of a row's case."""
    return (
        f"{row.image_size} pixels, V {row.vocab_size}, B {row.batch_size}: {row.num_decoder_blocks} blocks, "
        f"d {row.d_model}, K {row.num_slots}, T {row.num_iterations}, {row.precision}"
    )


def _tables(rows: Sequence[StepRow]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of the tables of a case."""
    yield step_case_title(rows[0]), *headings_and_cells(_COLUMNS, rows)
    eager = [row for row in rows if not row.compiled]
    if eager:
        yield "", *headings_and_cells(_PART_COLUMNS, eager)


_COLUMNS: tuple[Column[StepRow], ...] = (
    ("provider", lambda row: row.provider),
    ("gradient", lambda row: row.gradient),
    ("images/s", lambda row: digits(row.images_per_s)),
    (
        "step ms (p20 to p80)",
        lambda row: with_spread(row.step_ms_p50, row.step_ms_p20, row.step_ms_p80),
    ),
    ("forward ms", lambda row: digits(row.forward_ms)),
    ("backward ms", lambda row: digits(row.backward_ms)),
    ("clip + Adam ms", lambda row: digits(row.update_ms)),
    ("kept MiB", lambda row: mib(row.kept_bytes)),
    ("peak MiB", lambda row: mib(row.peak_bytes)),
    ("peak / public", lambda row: known(row.peak_ratio, "{:.2f}".format)),
    ("speed-up", lambda row: factor(row.speedup)),
)
_PART_COLUMNS: tuple[Column[StepRow], ...] = (
    ("eager forward, ms", lambda row: row.provider),
    ("gradient", lambda row: row.gradient),
    ("dVAE encoder", lambda row: number(row.encoder_ms)),
    ("tokens, dVAE decoder", lambda row: number(row.tokens_ms)),
    ("slots", lambda row: number(row.slots_ms)),
    ("transformer", lambda row: number(row.transformer_ms)),
    ("logits, cross-entropy", lambda row: number(row.output_ms)),
)
