"""Results as tables, for the terminal and in Markdown, and what all of them say in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from fastslots._extras import require
from fastslots.benchmark.results_file import Skipped
from fastslots.environment import Environment

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20

_Value = TypeVar("_Value")
_Row = TypeVar("_Row")
Column = tuple[str, Callable[[_Row], str]]  # heading, what stands under it


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


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int, title: str = ""
) -> str:
    """The same in Markdown."""
    rule = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    lines = (f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
    return f"**{title}**\n\n" * bool(title) + "\n".join(lines)


def markdown_report(
    tables: Iterable[str], notes: Sequence[str], legend: str, environment: Environment
) -> str:
    """Tables, notes as a list, what the columns mean, and where it was measured."""
    listed = ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join([*tables, *listed, legend, environment_line(environment)])


def headings_and_cells(
    columns: Sequence[Column[_Row]], rows: Iterable[_Row]
) -> tuple[list[str], list[list[str]]]:
    """Of a table with these columns and a line for each row."""
    return [heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def environment_line(env: Environment) -> str:
    """Device, versions, commit and date in one sentence."""
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


def digits(value: float) -> str:
    """Three digits, all before the point, and no exponent: 0.012, 1.23, 12.3, 123, 1234."""
    decimals = 3 - sum(value >= limit for limit in (1, 10, 100))
    return f"{value:.{decimals}f}"


def known(value: _Value | None, write: Callable[[_Value], str]) -> str:
    """A value as it is written, or a dash for None."""
    return "-" if value is None else write(value)


def number(value: float | None) -> str:
    """As `digits`, or a dash."""
    return known(value, digits)


def factor(value: float | None) -> str:
    """How many times as much, or a dash: 1.23x."""
    return known(value, "{:.2f}x".format)


def mib(num_bytes: int | None) -> str:
    """MiB to three digits, or a dash."""
    return known(num_bytes, lambda known_bytes: digits(known_bytes / MIB))


def with_spread(p50: float, p20: float, p80: float) -> str:
    """A median and what three fifths of all rounds lie between."""
    return f"{digits(p50)} ({digits(p20)} to {digits(p80)})"
