"""All commands."""

from __future__ import annotations

import typer

from fastslots.cli.benchmark import app as benchmark
from fastslots.cli.compare import compare
from fastslots.cli.evaluate import evaluate
from fastslots.cli.reconstruct import reconstruct
from fastslots.cli.train import train

app = typer.Typer(
    help="Slot attention as a fixed point: train SLATE, look at its slots, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(evaluate)
app.command()(reconstruct)
app.command()(compare)
app.add_typer(benchmark, name="benchmark")
