"""``fastslots benchmark suite``: what is measured on a GPU, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastslots.benchmark import PARTS, choose_parts, describe_environment, is_measured
from fastslots.benchmark.report import skipped_lines
from fastslots.devices import choose_device
from fastslots.files import check_writable


def suite(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="Names of parts, or core or rest for all of a suite. Default: core."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Print the parts and stop.")] = False,
    tiny: Annotated[
        bool, typer.Option(help="Tiny tensors, nothing compiled: shows that the parts run.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(help="Measure parts too that were measured at this commit on this device."),
    ] = False,
    commit: Annotated[
        str | None, typer.Option(help="Of the sources, where they are no git checkout.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = Path(
        "runs/benchmark-suite"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measures shapes and precisions in parts of a minute or two, each into OUTPUT/PART.json.

    A part whose file is of the same commit and device is skipped, so that what was stopped goes on when
    run again. Where results are wrong they are left out, the rest is measured, and the exit code is 1.
    """
    if show:
        for part in PARTS.values():
            typer.echo(f"{part.name} ({part.suite})")
        return
    chosen, where = choose_parts(parts), choose_device(device)
    check_writable(output)
    environment = describe_environment(where)
    wrong = False
    for part in chosen:
        path = output / f"{part.name}.json"
        if not again and is_measured(path, commit or environment["commit"], environment["device"]):
            typer.echo(f"{path} is of this commit and device: skipped")
            continue
        with Console(stderr=True).status(part.name) as status:
            measured = (part.tiny() if tiny else part).measure(where, commit, status.update)
        measured.save(path)
        typer.echo(f"wrote {path}: {len(measured.rows)} rows")
        for line in skipped_lines(measured.wrong):
            typer.echo(line, err=True)
        wrong = wrong or bool(measured.wrong)
    if wrong:
        raise typer.Exit(1)
