"""Results as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastslots._extras import require
from fastslots.benchmark.cases import Skipped
from fastslots.benchmark.results import Results, Row
from fastslots.benchmark.results_file import ResultsFile

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20
HEADINGS = (
    "backend",
    "gradient",
    "T",
    "forward ms",
    "backward ms",
    "both ms (p20 to p80)",
    "kept MiB",
    "kept / inputs",
    "peak MiB",
    "speed-up",
)
LEGEND = (
    "Times are medians. unrolled: T tracked iterations; implicit: T iterations without a graph, then one "
    "tracked. kept: alive after the forward beyond inputs and weights; peak: of forward and backward. "
    "speed-up: of forward and backward against eager `reference`, same gradient and T, timed in turns."
)


def result_tables(results: Results) -> list[Table]:
    """One rich table per case."""
    return [
        terminal_table(case_title(rows[0]), HEADINGS, map(_cells, rows), num_left=2)
        for rows in results.cases().values()
    ]


def terminal_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int
) -> Table:
    """A rich table whose first `num_left` columns are flush left, the others right."""
    rich_table, box = require("rich.table", "benchmark"), require("rich.box", "benchmark")
    table: Table = rich_table.Table(title=title, box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < num_left else "right")
    for cells in rows:
        table.add_row(*cells)
    return table


def markdown(results: Results, iterations: Sequence[int] | None = None) -> str:
    """The tables in Markdown, with what was left out and where it was measured.

    Args:
        results: What to show.
        iterations: Show only the rows of these. Default: all.
    """
    parts = []
    for rows in results.cases().values():
        shown = [row for row in rows if iterations is None or row.iterations in iterations]
        if shown:
            body = markdown_table(HEADINGS, map(_cells, shown), num_left=2)
            parts.append(f"**{case_title(rows[0])}**\n\n{body}")
    if results.skipped:
        parts.append("\n".join(f"- {line}" for line in skipped_lines(results.skipped)))
    return "\n\n".join([*parts, LEGEND, environment_line(results)])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int) -> str:
    """A Markdown table whose first `num_left` columns are flush left, the others right."""
    rule = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def case_title(row: Row) -> str:
    """Name, shape and dtype of a row's case."""
    heads = f", H {row.num_heads}" if row.num_heads > 1 else ""
    return (
        f"{row.case}: B {row.batch}, N {row.num_inputs}, C {row.input_size}, K {row.num_slots}, "
        f"D {row.slot_size}, MLP {row.mlp_hidden_size}{heads}, {row.dtype}"
    )


def environment_line(results: ResultsFile[Any]) -> str:
    """Device, versions, commit and date in one sentence."""
    env = results.environment
    commit = "no git checkout"
    if env["commit"]:
        commit = f"commit {env['commit'][:10]}" + (" with changes" if env["dirty"] else "")
    triton = f", triton {env['triton']}" if env["triton"] else ""
    return (
        f"{env['device']}, {env['threads']} CPU threads, torch {env['torch']}{triton}, "
        f"Python {env['python']}, {commit}, {env['timestamp'][:10]}."
    )


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """One line for each provider and reason: what was not measured, and why."""
    iterations: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        what = ", ".join(filter(None, (entry.case, entry.provider, entry.gradient)))
        counts = iterations.setdefault((what, entry.reason), [])
        if entry.iterations:
            counts.append(str(entry.iterations))
    return [
        what + (f", T = {', '.join(counts)}" if counts else "") + f" not measured: {reason}"
        for (what, reason), counts in iterations.items()
    ]


def mib(num_bytes: int | None) -> str:
    """MiB to three digits, or a dash."""
    return "-" if num_bytes is None else digits(num_bytes / MIB)


def digits(value: float) -> str:
    """Three digits, all before the point, and no exponent: 0.012, 1.23, 12.3, 123, 1234."""
    decimals = 3 - sum(value >= limit for limit in (1, 10, 100))
    return f"{value:.{decimals}f}"


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"({digits(row.both_ms_p20)} to {digits(row.both_ms_p80)})"
    return (
        row.provider,
        row.gradient,
        str(row.iterations),
        digits(row.forward_ms_p50),
        digits(row.backward_ms_p50),
        f"{digits(row.both_ms_p50)} {spread}",
        mib(row.kept_bytes),
        "-" if row.kept_bytes is None else f"{row.kept_bytes / row.input_bytes:.2f}",
        mib(row.peak_bytes),
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
    )
