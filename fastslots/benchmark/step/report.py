"""Results of training steps as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastslots.benchmark.step.results import StepResults, StepRow
from fastslots.benchmark.tables import (
    digits,
    factor,
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

HEADINGS = (
    "provider",
    "gradient",
    "images/s",
    "step ms (p20 to p80)",
    "forward ms",
    "backward ms",
    "clip + Adam ms",
    "kept MiB",
    "peak MiB",
    "peak / public",
    "speed-up",
)
PART_HEADINGS = (
    "eager forward, ms",
    "gradient",
    "dVAE encoder",
    "tokens, dVAE decoder",
    "slots",
    "transformer",
    "logits, cross-entropy",
)
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


def _tables(
    rows: Sequence[StepRow],
) -> Iterator[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    """Title, headings and cells of the tables of a case."""
    yield step_case_title(rows[0]), HEADINGS, [_cells(row) for row in rows]
    parts = [_part_cells(row) for row in rows if not row.compiled]
    if parts:
        yield "", PART_HEADINGS, parts


def _cells(row: StepRow) -> tuple[str, ...]:
    return (
        row.provider,
        row.gradient,
        digits(row.images_per_s),
        with_spread(row.step_ms_p50, row.step_ms_p20, row.step_ms_p80),
        digits(row.forward_ms),
        digits(row.backward_ms),
        digits(row.update_ms),
        mib(row.kept_bytes),
        mib(row.peak_bytes),
        known(row.peak_ratio, "{:.2f}".format),
        factor(row.speedup),
    )


def _part_cells(row: StepRow) -> tuple[str, ...]:
    parts = (row.encoder_ms, row.tokens_ms, row.slots_ms, row.transformer_ms, row.output_ms)
    return row.provider, row.gradient, *map(number, parts)
