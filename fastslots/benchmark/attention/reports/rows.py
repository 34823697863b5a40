"""Rows of slot attention as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastslots.benchmark.attention.check import BY_RUNNING
from fastslots.benchmark.attention.results import Results, Row
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
    "Times are medians. unrolled: T tracked iterations; implicit: T iterations without a graph, then one "
    "tracked. kept: alive after the forward beyond inputs and weights; peak: of forward and backward. "
    "speed-up: of forward and backward against eager `reference`, same gradient and T, timed in turns."
)
NO_GRAD = "no-grad: T iterations without a graph, nothing else."
GPU_LEGEND = (
    "launches / T: kernels that a further iteration of the forward launches. forward GB/s: the least "
    "bytes of the inputs that its steps can read (as they are in each, or normalised once in the type of "
    "the products), over its time; in brackets its share of the bandwidth of a copy, which inputs that fit "
    "the L2 cache may pass 100 % of. Memory of graphs is that of the same call before it was captured. "
    "J: of forward and backward, by the driver's counter."
)
OWN_PARAMETERS = (
    "slot-attention of PyPI has parameters of its own: that it runs is all that was checked."
)


def result_tables(results: Results) -> list[Table]:
    """One rich table per case."""
    return [
        terminal_table(case_title(rows[0]), *_headings_and_cells(rows, rows), num_left=3)
        for rows in results.cases().values()
    ]


def markdown(results: Results, iterations: Sequence[int] | None = None) -> str:
    """The tables in Markdown, with what was left out and where it was measured.

    Args:
        results: What to show.
        iterations: Show only the rows of these. Default: all.
    """
    tables = []
    for rows in results.cases().values():
        shown = [row for row in rows if iterations is None or row.iterations in iterations]
        if shown:
            cells = _headings_and_cells(rows, shown)
            tables.append(markdown_table(*cells, num_left=2, title=case_title(rows[0])))
    notes = [*skipped_lines(results.skipped), *gradient_lines(results.rows)]
    return markdown_report(tables, notes, legend(results), results.environment)


def legend(results: Results) -> str:
    """What the columns and names of these results mean."""
    rows = results.rows
    parts = [
        (LEGEND, True),
        (NO_GRAD, any(row.gradient == "no-grad" for row in rows)),
        (GPU_LEGEND, any(row.copy_gb_s is not None for row in rows)),
        (OWN_PARAMETERS, any(row.check == BY_RUNNING for row in rows)),
    ]
    return " ".join(text for text, applies in parts if applies)


def constant_memory_table(results: Results) -> Table:
    """Bytes kept and the time of the backward against the number of iterations, as a rich table."""
    by_provider: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        by_provider.setdefault((row.gradient, row.backend), []).append(row)
    counts = sorted({row.iterations for row in results.rows})
    columns = [f"{what}\nT = {n}" for what in ("kept MiB", "backward ms") for n in counts]
    cells = [
        (*names, *(mib(r.kept_bytes) for r in rows), *(number(r.backward_ms_p50) for r in rows))
        for names, rows in by_provider.items()
    ]
    title = "What the backward costs after T iterations"
    return terminal_table(title, ["gradient", "backend", *columns], cells, num_left=2)


def case_title(row: Row) -> str:
    """Name, shape, dtype and precision of a row's case."""
    heads = f", H {row.num_heads}" if row.num_heads > 1 else ""
    precision = {"ieee": "", "tf32": ", tf32 products", "bf16": ", bf16 autocast"}[row.precision]
    return (
        f"{row.case}: B {row.batch}, N {row.num_inputs}, C {row.input_size}, K {row.num_slots}, "
        f"D {row.slot_size}, MLP {row.mlp_hidden_size}{heads}, {row.dtype}{precision}"
    )


def gradient_lines(rows: Iterable[Row]) -> list[str]:
    """One line for each row whose gradients are further off than rounding explains."""
    return [
        f"{row.case}, {row.provider}, {row.gradient}, T = {row.iterations}: a gradient is off by "
        f"{digits(row.gradient_error)} times what rounding explains"
        for row in rows
        if row.gradient_error is not None and row.gradient_error > 1
    ]


def _of_inputs(row: Row) -> str:
    return known(row.kept_bytes, lambda kept: f"{kept / row.input_bytes:.2f}")


def _bandwidth(row: Row) -> str:
    return known(row.share_of_copy, lambda share: f"{row.forward_gb_s:.0f} ({share:.0%})")


_COLUMNS: tuple[Column[Row], ...] = (
    ("backend", lambda row: row.provider),
    ("gradient", lambda row: row.gradient),
    ("T", lambda row: str(row.iterations)),
    ("forward ms", lambda row: digits(row.forward_ms_p50)),
    ("backward ms", lambda row: number(row.backward_ms_p50)),
    (
        "both ms (p20 to p80)",
        lambda row: with_spread(row.both_ms_p50, row.both_ms_p20, row.both_ms_p80),
    ),
    ("kept MiB", lambda row: mib(row.kept_bytes)),
    ("kept / inputs", _of_inputs),
    ("peak MiB", lambda row: mib(row.peak_bytes)),
    ("speed-up", lambda row: factor(row.speedup)),
)
_GPU_COLUMNS: tuple[Column[Row], ...] = (
    ("launches / T", lambda row: number(row.launches_per_iteration)),
    ("forward GB/s", _bandwidth),
    ("J", lambda row: number(row.joules)),
)


def _headings_and_cells(
    rows: Sequence[Row], shown: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
    """Of a case's rows that are shown; what only a GPU has stands there if one of them has it."""
    used = [column for column in _GPU_COLUMNS if any(column[1](row) != "-" for row in rows)]
    return headings_and_cells((*_COLUMNS, *used), shown)
