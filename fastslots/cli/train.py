"""``fastslots train``."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastslots.cli.flags import with_flags
from fastslots.cli.paths import check_apart, utf8_path
from fastslots.cli.presets import CPU_SETTINGS, preset
from fastslots.cli.run_config import absolute_paths, read_config
from fastslots.cli.run_images import files_to_train_on
from fastslots.data.folder import ImageFolder
from fastslots.data.source import DataSource
from fastslots.devices import choose_device
from fastslots.files import check_writable
from fastslots.models.slate import SLATE, SLATEConfig
from fastslots.noise import derive_seed
from fastslots.training.batches import BatchParts
from fastslots.training.loading import workers_for
from fastslots.training.loop import resume_command
from fastslots.training.loop import train as run_training
from fastslots.training.processes import (
    end_process,
    from_all,
    from_main,
    join_processes,
    on_main,
)
from fastslots.training.recipe import Recipe
from fastslots.training.stopping import Terminated

MAX_WORKERS = 256  # more would be a slip of the finger that stops a machine

# What each switch sets, and its value.
SWITCHES: dict[str, tuple[str, float]] = {
    "--no-clip": ("clip", math.inf),
    "--no-warmup": ("warmup_steps", 0),
    "--no-decay": ("patience", 0),
}


@with_flags(
    {"model": SLATEConfig, "recipe": Recipe, "data": DataSource},
    on_cpu=CPU_SETTINGS,
    without={"image_channels"},  # images are read and rendered as RGB
)
def train(
    output: Annotated[
        Path | None,
        typer.Option(parser=utf8_path, help="Run folder. Default: runs/train-DATE-TIME."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=utf8_path, help="Go on with this run folder's last checkpoint and settings."
        ),
    ] = None,
    settings: Annotated[
        str,
        typer.Option(
            help="cpu: sized for a few cores; gpu: the paper's; auto: by the device. "
            "Flags below override single numbers."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_WORKERS,
            help="Processes that load images; 0: in this one. Default: several for a folder on CUDA, else 0.",
            show_default=False,
        ),
    ] = None,
    no_clip: Annotated[
        bool, typer.Option("--no-clip", help="No gradient clipping.", rich_help_panel="Recipe")
    ] = False,
    no_warmup: Annotated[
        bool,
        typer.Option(
            "--no-warmup", help="The peak rate from the first step.", rich_help_panel="Recipe"
        ),
    ] = False,
    no_decay: Annotated[
        bool,
        typer.Option(
            "--no-decay", help="Never halve the learning rates.", rich_help_panel="Recipe"
        ),
    ] = False,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Trains SLATE with implicit slot attention; writes losses, pictures and checkpoints.

    The run folder holds config.json, metrics.jsonl, tensorboard/, samples/*.png and checkpoints/, and
    images.json, the names of a folder's files: a run does not go on with others.

    Several devices: torchrun --nproc-per-node N -m fastslots train, or accelerate launch -m fastslots train.
    """
    switches = {"--no-clip": no_clip, "--no-warmup": no_warmup, "--no-decay": no_decay}
    flags["recipe"] |= _switched(switches, flags["recipe"])
    processes = join_processes(choose_device(device))
    where = processes.device
    if resume is not None:
        named = {"output": output is not None, "settings": settings != "auto"}
        given = [name for name, is_given in named.items() if is_given]
        given += [*flags["model"], *flags["data"]]
        if given:
            raise ValueError(
                "resume takes model, data, settings and folder from the run; got "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}: leave that out"
            )
        run, saved = resume, read_config(resume)
    else:
        now = from_main(processes, f"{datetime.now():%Y%m%d-%H%M%S}")
        run, saved = output or Path("runs") / f"train-{now}", preset(settings, where)
    chosen = {group: saved[group] | flags[group] for group in flags}
    config, recipe = SLATEConfig(**chosen["model"]), Recipe(**chosen["recipe"])
    BatchParts(recipe.batch_size, recipe.accumulation, processes.num_processes)  # or it raises
    source = DataSource(**absolute_paths(chosen["data"]))

    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if source.data == "scenes" else workers_for(where, here)
    # Worker processes cannot share the GPU of this one.
    render_on = torch.device("cpu") if workers else where
    files = files_to_train_on(processes, source, resume)
    train_set = source.open("train", config.image_size, render_on, files)
    validation_set = source.open("val", config.image_size, render_on, files)
    if resume is None:
        on_main(processes, lambda: _new_run(run, source))
    if not processes.is_main_process:
        logging.getLogger("fastslots").setLevel(logging.ERROR)
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = SLATE(config).to(where)
    echo = typer.echo if processes.is_main_process else _say_nothing
    echo(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on "
        f"{processes.num_processes} x {where.type}, {len(train_set)} images to train on, "
        f"{len(validation_set)} held out; run folder {run}"
    )
    parts: dict[str, Any] = {"model": config, "recipe": recipe, "data": source}
    try:
        with _thread_errors_once():
            last = run_training(
                model,
                recipe,
                train_set,
                validation_set,
                run,
                resume=resume is not None,
                num_workers=workers,
                settings={name: dataclasses.asdict(part) for name, part in parts.items()},
                image_files=files,
            )
    except KeyboardInterrupt as stopped:
        if not (run / "config.json").is_file():  # nothing to go on with
            raise
        word, code = (
            ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        )
        echo(f"{word}; go on with: {resume_command(run)}", err=True)
        end_process(processes, code)
    folders = [images for images in (train_set, validation_set) if isinstance(images, ImageFolder)]
    found = from_all(processes, [str(path) for images in folders for path in images.corrupt])
    corrupt = sorted(set().union(*found))
    if corrupt:
        echo(f"corrupt images left out or replaced: {len(corrupt)} ({', '.join(corrupt)})")
    echo(f"wrote {last} and the pictures in {run / 'samples'}")
    end_process(processes)


def _switched(switches: Mapping[str, bool], given: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that the switches stand for."""
    numbers = {}
    for switch, (name, value) in SWITCHES.items():
        if switches[switch]:
            if name in given:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} and {switch} exclude each other; got {flag} {given[name]}"
                )
            numbers[name] = value
    return numbers


def _say_nothing(*_: object, **__: object) -> None:
    """In place of typer.echo where another process speaks."""


@contextmanager
def _thread_errors_once() -> Iterator[None]:
    """TensorBoard's thread hands its errors on; the traceback it also prints would say them twice."""

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            threading.__excepthook__(args)

    previous, threading.excepthook = threading.excepthook, hook
    try:
        yield
    finally:
        threading.excepthook = previous


def _new_run(run: Path, source: DataSource) -> None:
    """Makes the run folder."""
    if (run / "config.json").exists():
        raise FileExistsError(
            f"{run} holds a run already: choose another --output, or go on with: {resume_command(run)}"
        )
    check_apart(run, source.data)
    check_writable(run)
