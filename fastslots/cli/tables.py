"""Results on the terminal, or as Markdown where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Column, Table


def show_results(markdown: str, tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Prints results.

    Args:
        markdown: All of them, for a file or a pipe.
        tables: The same for a terminal.
        lines: What a terminal shows below the tables.
    """
    console = Console()
    if not console.is_terminal:
        typer.echo(markdown)
        return
    for table in tables:
        for piece in _pieces(table, console):
            console.print(piece)
    for line in lines:
        show_line(console, line)


def show_line(console: Console, line: str) -> None:
    """Prints a line: broken between words on a terminal, whole elsewhere."""
    console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _pieces(table: Table, console: Console) -> list[Table]:
    """A table in pieces that fit the terminal, each with the columns that are flush left."""
    keys = [column for column in table.columns if column.justify == "left"]
    parts: list[list[Column]] = []
    for column in table.columns:
        if column in keys:
            continue
        if parts and _width(_piece(table, [*keys, *parts[-1], column]), console) <= console.width:
            parts[-1].append(column)
        else:
            parts.append([column])
    return [_piece(table, [*keys, *part]) for part in parts]


def _piece(table: Table, columns: Sequence[Column]) -> Table:
    piece = Table(*(column.copy() for column in columns), title=table.title, box=table.box)
    for cells in zip(*(column.cells for column in columns), strict=True):
        piece.add_row(*cells)
    return piece


def _width(table: Table, console: Console) -> int:
    """Characters of a row that breaks nowhere."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum
