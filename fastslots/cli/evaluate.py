"""``fastslots evaluate``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastslots.cli.flags import with_flags
from fastslots.cli.options import Device, Seed
from fastslots.cli.paths import any_path, check_apart, utf8_path
from fastslots.cli.run_config import absolute_paths, read_config
from fastslots.cli.run_images import corrupt_line, files_to_evaluate
from fastslots.cli.saved import HELP, find_saved, load_saved
from fastslots.cli.tables import show_line
from fastslots.data.folder import ImageFolder
from fastslots.data.source import DataSource, Split
from fastslots.devices import choose_device
from fastslots.environment import describe_environment
from fastslots.evaluation import Evaluation, draw_examples
from fastslots.evaluation import evaluate as measure
from fastslots.evaluation.measuring import check_request
from fastslots.files import check_writable, write_text
from fastslots.models import pretrained
from fastslots_kernels.checks import check_choice

SCHEMA = 1
LINES = 10  # of progress, where there is no terminal for a bar


@with_flags({"data": DataSource}, default="the run's")
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=utf8_path,
            metavar="CHECKPOINT_OR_RUN",
            help=HELP,
        ),
    ],
    split: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    images: Annotated[
        int | None, typer.Option(help="Take the first so many. Default: the whole split.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    seed: Seed = 0,
    num_slots: Annotated[
        int | None,
        typer.Option(help="Slots, in place of the model's; learned ones are of one number."),
    ] = None,
    num_iterations: Annotated[
        int | None, typer.Option(help="Slot attention steps, in place of the model's.")
    ] = None,
    masks: Annotated[
        bool | None,
        typer.Option(
            help="Insist on true masks, or do without. Default: taken where the data have them."
        ),
    ] = None,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            help="Folder to write to. Default: RUN/evaluation-SPLIT (with other slots or iterations also "
            "these), beside a checkpoint that is in no run, or here for a model that comes with the package.",
        ),
    ] = None,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Measures a model on a split: its reconstructions, the objects found.

    Writes evaluation.json, and evaluation.png with the best, the median and
    the worst image. The data are the run's, and a folder must hold the images
    that the run began with; their flags change single settings. A model
    outside of a run needs --data. How well objects are found is measured on a
    SLATE's attention, and on a slot autoencoder's masks; attention_... is of
    the latter's attention.
    """
    check_choice("split", split, get_args(Split))
    where = choose_device(device)
    folder = find_saved(checkpoint).absolute()
    run = _run_of(folder)
    source = _source(folder, run, flags["data"])
    files = files_to_evaluate(run, source, cast("Split", split))
    changes = {"num_slots": num_slots, "num_iterations": num_iterations}
    settings = {name: number for name, number in changes.items() if number is not None}
    model = load_saved(folder, where, **settings)
    step = _step(folder)
    data = source.open(cast("Split", split), model.config.image_size, where, files)
    check_request(data, num_images=images, batch_size=batch_size, masks=masks)
    if output is None:
        changed = "".join(f"-{number}-{name}" for name, number in settings.items())
        output = _output(folder, run, f"evaluation-{split}{changed}")
    check_apart(output, source.data)
    check_writable(output)

    with _progress(len(data) if images is None else images) as progress:
        result = measure(
            model,
            data,
            num_images=images,
            batch_size=batch_size,
            seed=seed,
            masks=masks,
            progress=progress,
        )
    report = {
        "schema": SCHEMA,
        "checkpoint": str(folder),
        "step": step,
        "split": split,
        "num_images": result.num_images,
        "corrupt_images": len(data.corrupt) if isinstance(data, ImageFolder) else 0,
        "batch_size": batch_size,
        "seed": seed,
        "data": dataclasses.asdict(source),
        "model": dataclasses.asdict(model.config),
        "environment": describe_environment(where),
        **_findings(result),
    }
    write_text(output / "evaluation.json", json.dumps(report, indent=2) + "\n")
    draw_examples(model, data, result, output / "evaluation.png")
    _show(result, f"step {step}" if step is not None else folder.name, split)
    if isinstance(data, ImageFolder) and data.corrupt:
        typer.echo(corrupt_line(data.corrupt))
    typer.echo(f"wrote {output / 'evaluation.json'} and evaluation.png")


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint is one of."""
    run = checkpoint.parent.parent
    is_of_run = checkpoint.parent.name == "checkpoints" and (run / "config.json").is_file()
    return run if is_of_run else None


def _output(checkpoint: Path, run: Path | None, name: str) -> Path:
    """Where results go: into the run, beside the checkpoint, but not among the models of the package."""
    if run is not None:
        return run / name
    place = Path() if checkpoint.parent == pretrained.SHIPPED else checkpoint.parent
    return place / f"{checkpoint.name}-{name}"


def _source(checkpoint: Path, run: Path | None, flags: dict[str, Any]) -> DataSource:
    """The run's data but for what the flags change."""
    if run is None and "data" not in flags:
        raise ValueError(f"{checkpoint} lies in no run whose data could be taken: give --data")
    saved = {} if run is None else read_config(run)["data"]
    return DataSource(**absolute_paths(saved | flags))


def _step(checkpoint: Path) -> int | None:
    """The training step of a checkpoint; None for a model that was saved by itself."""
    path = checkpoint / "state.json"
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_text())["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the checkpoint in {checkpoint} is damaged: {path.name}: {error!r}"
        ) from error


def _findings(result: Evaluation) -> dict[str, Any]:
    """What the JSON file says of a result."""
    metrics = {name: mean and mean._asdict() for name, mean in result.means.items()}
    return {
        "metrics": metrics,
        "unmeasured": result.unmeasured,
        "ranked_by": result.ranked_by,
        "examples": [example._asdict() for example in result.examples],
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left; some plain lines where there is no terminal."""
    console = Console()
    bar = Progress(
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("evaluating", total=total)
    lines = 0

    def report(done: int) -> None:
        nonlocal lines
        bar.update(task, completed=done)
        if not console.is_terminal and done * LINES // total > lines:
            lines = done * LINES // total
            typer.echo(f"evaluated {done}/{total} images")

    with bar:
        yield report


def _show(result: Evaluation, which: str, split: str) -> None:
    """Prints the means, 60 characters wide at most, and why others are missing."""
    title = f"{which} on {result.num_images} images of split {split}"
    table = Table(
        title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("mean over images", overflow="fold")
    for heading in ("mean", "std err", "images"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, mean in result.means.items():
        if mean is not None:
            error = "" if mean.standard_error is None else f"{mean.standard_error:.2g}"
            table.add_row(name, f"{mean.mean:.5g}", error, str(mean.images))
    console = Console()
    console.print(table)
    for reason in dict.fromkeys(result.unmeasured.values()):
        names = [name for name, its_reason in result.unmeasured.items() if its_reason == reason]
        show_line(console, f"not measured: {', '.join(names)} ({reason})")
    examples = ", ".join(f"{e.rank} {e.score:.2f} (image {e.image})" for e in result.examples)
    show_line(console, f"by {result.ranked_by}: {examples}")
