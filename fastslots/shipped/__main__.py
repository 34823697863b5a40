"""``python -m fastslots.shipped NAME``: hours of one CPU core."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastslots.shipped.make import make
from fastslots.shipped.models import MODELS
from fastslots.shipped.record import shipped_markdown
from fastslots_kernels.checks import check_choice


def ship(
    name: Annotated[str, typer.Argument(metavar="|".join(MODELS), help="Which model.")],
    results: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path(
        "benchmarks/results/pretrained"
    ),
) -> None:
    """Trains a model of the package in runs/shipped/NAME, puts it there, measures and draws it.

    A training that was interrupted goes on, one that is over is taken as it is.
    """
    check_choice("name", name, tuple(MODELS))
    typer.echo(
        shipped_markdown(make(MODELS[name], Path("runs/shipped") / name, results, typer.echo))
    )


if __name__ == "__main__":
    try:
        typer.run(ship)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        sys.exit(f"shipped: {error}")
