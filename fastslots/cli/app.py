"""All commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastslots.cli.benchmark import app as benchmark
from fastslots.cli.compare import compare
from fastslots.cli.evaluate import evaluate
from fastslots.cli.reconstruct import reconstruct
from fastslots.cli.segment import segment
from fastslots.cli.train import train
from fastslots.version import __version__

INTERRUPTED_CODE = 130  # which typer makes of a KeyboardInterrupt
# Of click, or of the copy of it that newer typers have.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastslots {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fastslots(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
) -> None:
    """Slot attention as a fixed point: train models, look at their slots, measure."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(train)
app.command()(evaluate)
app.command()(reconstruct)
app.command()(segment)
app.command()(compare)
app.add_typer(benchmark, name="benchmark")


def run() -> int | None:
    """Runs the command that the program was called with.

    Returns:
        The exit code, None for 0.

    Raises:
        ValueError: If the arguments are none of the command's, naming what is wrong with which.
        KeyboardInterrupt: If it was interrupted, and has not said so itself.
    """
    try:
        code: int | None = app(prog_name="fastslots", standalone_mode=False)
    except UsageError as error:
        message = " ".join(error.format_message().split()).removesuffix(".")
        command = error.ctx.command_path if error.ctx else "fastslots"
        raise ValueError(f"{message}; see: {command} --help") from error
    if code == INTERRUPTED_CODE:
        raise KeyboardInterrupt
    return code
