"""``python -m fastslots.demo``: what ``scripts/demo`` runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastslots.benchmark import constant_memory_table, measure_constant_memory
from fastslots.benchmark.tables import terminal_table
from fastslots.demo.record import LEGEND, table_of
from fastslots.demo.run import run_demo
from fastslots.devices import choose_device


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of weights, images and noise.")] = 0,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A dry run of seconds, which learns nothing.")
    ] = False,
) -> None:
    """Trains a slot autoencoder by implicit and by unrolled gradients; writes runs/demo/ anew.

    scripts/demo --slate trains a small SLATE in its place.
    """
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a file or a pipe has 80 columns: the tables need more
    folder = Path("runs/demo-tiny" if tiny else "runs/demo")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, emoji=False)

    results = run_demo(folder, seed, say, tiny=tiny)
    console.print(terminal_table("", *table_of(results), num_left=1))
    console.print(LEGEND + "\n")
    console.print(constant_memory_table(measure_constant_memory(choose_device())))
    console.print(f"Pictures: {folder}/objects.png, beside.png, curves.png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so end the trainings
    try:
        typer.run(demo)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        sys.exit(f"demo: {error}")
