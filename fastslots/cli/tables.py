"""Results on the terminal, or as Markdown where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table


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
        console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False)
