"""``fastslots compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastslots.cli.flags import with_flags
from fastslots.cli.options import Device
from fastslots.cli.paths import utf8_path
from fastslots.cli.presets import switched
from fastslots.cli.tables import show_results
from fastslots.comparison import Settings
from fastslots.comparison import compare as run_comparison
from fastslots.comparison.report import LEGEND, comparison_table, markdown
from fastslots.devices import choose_device
from fastslots.files import check_writable
from fastslots.models.slate import SLATERecipe

# For a dry run: what takes seconds on a CPU.
TINY: dict[str, Any] = {
    "image_size": 16,
    "vocab_size": 16,
    "d_model": 16,
    "num_decoder_blocks": 1,
    "num_slots": 3,
    "num_iterations": 2,
    "num_scenes": 16,
    "num_heldout": 4,
    "batch_size": 4,
}
TINY_STEPS = 12


@with_flags({"settings": Settings})
def compare(
    output: Annotated[Path, typer.Option(parser=utf8_path, help="Folder for all files.")] = Path(
        "runs/compare"
    ),
    minutes: Annotated[float, typer.Option(help="For everything, from the first scene on.")] = 3.0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Of each model, if they fit. Default: as many as fit.", show_default=False
        ),
    ] = None,
    device: Device = "auto",
    no_clip: Annotated[bool, typer.Option("--no-clip", help="No gradient clipping.")] = False,
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="On CUDA, replay steps as CUDA graphs.")
    ] = True,
    commit: Annotated[
        str | None,
        typer.Option(help="Of the sources. Default: of their git checkout.", show_default=False),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A dry run: a tiny model, a few steps.")
    ] = False,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Trains SLATE with implicit and with unrolled slot attention, in turns, within a time.

    Both start from the same weights and see the same images. OUTPUT gets comparison.json, comparison.png,
    and for each model a picture and its weights.
    """
    numbers = flags["settings"]
    numbers |= switched({"--no-clip": no_clip}, numbers, SLATERecipe)
    settings = replace(Settings(**TINY) if tiny else Settings(), **numbers)
    where = choose_device(device)
    check_writable(output)
    comparison = run_comparison(
        settings,
        where,
        output,
        minutes=minutes,
        steps=TINY_STEPS if tiny and steps is None else steps,
        graphs=graphs,
        commit=commit,
        progress=typer.echo,
    )
    show_results(markdown(comparison), [comparison_table(comparison)], [LEGEND])
    typer.echo(f"wrote {output}")
