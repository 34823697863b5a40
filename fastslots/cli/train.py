"""``fastslots train``."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from fastslots.allocator import keep_freed_memory
from fastslots.cli.flags import listed, with_flags
from fastslots.cli.options import Device
from fastslots.cli.paths import check_apart, utf8_path
from fastslots.cli.presets import preset, switch, switched
from fastslots.cli.run_config import absolute_paths, read_config
from fastslots.cli.run_images import corrupt_line, files_to_train_on
from fastslots.data.folder import ImageFolder
from fastslots.data.source import DataSource
from fastslots.devices import choose_device
from fastslots.files import check_writable
from fastslots.models.recipe import Recipe
from fastslots.models.registry import MODELS, ModelKind
from fastslots.models.slot_config import SlotConfig
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
from fastslots.training.stopping import Terminated
from fastslots_kernels.checks import check_choice

if TYPE_CHECKING:
    from accelerate import PartialState

MAX_WORKERS = 256  # more would be a slip of the finger that stops a machine


@with_flags(
    {
        "model": {name: kind.config for name, kind in MODELS.items()},
        "recipe": {name: kind.recipe for name, kind in MODELS.items()},
        "data": dict.fromkeys(MODELS, DataSource),
    },
    on_cpu={name: kind.cpu_settings for name, kind in MODELS.items()},
    without={"image_channels"},  # images are read and rendered as RGB
)
def train(
    model: Annotated[
        str | None,
        typer.Option(
            help=f"{listed(MODELS)}. Default: {next(iter(MODELS))}, or the resumed run's.",
            show_default=False,
        ),
    ] = None,
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
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_WORKERS,
            help="Processes that load images; 0: in this one. Default: several for a folder on CUDA, else 0.",
            show_default=False,
        ),
    ] = None,
    no_clip: Annotated[bool, switch("--no-clip", "No gradient clipping.")] = False,
    no_warmup: Annotated[bool, switch("--no-warmup", "The peak rate from the first step.")] = False,
    no_decay: Annotated[
        bool, switch("--no-decay", "The learning rates stay at their peak.")
    ] = False,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Trains a model with implicit slot attention; writes losses, pictures and checkpoints.

    The run folder holds config.json, metrics.jsonl, tensorboard/, samples/*.png and checkpoints/, and
    images.json, the names of a folder's files: a run does not go on with others.

    Several devices: torchrun --nproc-per-node N -m fastslots train, or accelerate launch -m fastslots train.
    """
    switches = {"--no-clip": no_clip, "--no-warmup": no_warmup, "--no-decay": no_decay}
    processes = join_processes(choose_device(device))
    name, run, saved = _begun(processes, model, output, resume, settings, flags)
    kind = MODELS[name]
    _check_known(name, kind, flags)
    flags["recipe"] |= switched(switches, flags["recipe"], kind.recipe)
    chosen = {group: saved[group] | flags[group] for group in flags}
    config, recipe = kind.config(**chosen["model"]), kind.recipe(**chosen["recipe"])
    BatchParts(recipe.batch_size, recipe.accumulation, processes.num_processes)  # or it raises
    source = DataSource(**absolute_paths(chosen["data"]))

    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if source.data == "scenes" else workers_for(processes.device, here)
    # Worker processes cannot share the GPU of this one.
    render_on = torch.device("cpu") if workers else processes.device
    files = files_to_train_on(processes, source, resume)
    train_set = source.open("train", config.image_size, render_on, files)
    validation_set = source.open("val", config.image_size, render_on, files)
    if resume is None:
        on_main(processes, lambda: _new_run(run, source))
    if not processes.is_main_process:
        logging.getLogger("fastslots").setLevel(logging.ERROR)
    if processes.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    built = kind.model(config).to(processes.device)
    echo = typer.echo if processes.is_main_process else lambda *_, **__: None
    echo(
        f"{sum(p.numel() for p in built.parameters()) / 1e6:.2f} M parameters on "
        f"{processes.num_processes} x {processes.device.type}, {len(train_set)} images to train on, "
        f"{len(validation_set)} held out; run folder {run}"
    )
    parts: dict[str, Any] = {"model": config, "recipe": recipe, "data": source}
    written = {part_name: dataclasses.asdict(part) for part_name, part in parts.items()}
    with _thread_errors_once(), _ended_by_signals(processes, run, echo):
        last = run_training(
            kind.trainable(built),
            recipe,
            train_set,
            validation_set,
            run,
            resume=resume is not None,
            num_workers=workers,
            settings={"kind": name, **written},
            image_files=files,
        )
    _say_corrupt(processes, (train_set, validation_set), echo)
    echo(f"wrote {last} and the pictures in {run / 'samples'}")
    end_process(processes)


def _begun(
    processes: PartialState,
    model: str | None,
    output: Path | None,
    resume: Path | None,
    settings: str,
    flags: Mapping[str, Mapping[str, Any]],
) -> tuple[str, Path, dict[str, Any]]:
    """The name of the model, the run folder, and the settings that flags override.

    Raises:
        ValueError: If there is no such model, or flags were given that a resumed run has decided.
        OSError: If there is no such run.
    """
    if resume is not None:
        named = {
            "model": model is not None,
            "output": output is not None,
            "settings": settings != "auto",
        }
        _check_resumed([name for name, is_given in named.items() if is_given], flags)
        saved = read_config(resume)
        return saved["kind"], resume, saved
    name = check_choice("model", next(iter(MODELS)) if model is None else model, tuple(MODELS))
    now = from_main(processes, f"{datetime.now():%Y%m%d-%H%M%S}")
    return (
        name,
        output or Path("runs") / f"train-{now}",
        preset(name, settings, processes.device),
    )


def _check_known(name: str, kind: ModelKind, flags: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises if flags were given that are another model's."""
    classes: dict[str, type[SlotConfig] | type[Recipe]]
    classes = {"model": kind.config, "recipe": kind.recipe}
    for group, cls in classes.items():
        known = {field.name for field in dataclasses.fields(cls)}
        foreign = [f"--{flag.replace('_', '-')}" for flag in flags[group] if flag not in known]
        if foreign:
            raise ValueError(
                f"the {group} of {name} has no {', '.join(foreign)}: leave it out, or choose another --model"
            )


def _check_resumed(given: list[str], flags: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises if flags were given that a resumed run has decided."""
    given = [*given, *flags["model"], *flags["data"]]
    if given:
        raise ValueError(
            "resume takes model, data, settings and folder from the run; got "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}: leave that out"
        )


@contextmanager
def _ended_by_signals(
    processes: PartialState, run: Path, echo: Callable[..., None]
) -> Iterator[None]:
    """Says how to go on with a run that a signal stopped, and ends the process."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not (run / "config.json").is_file():  # nothing to go on with
            raise
        word, code = (
            ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        )
        echo(f"{word}; go on with: {resume_command(run)}", err=True)
        end_process(processes, code)


def _say_corrupt(
    processes: PartialState, sets: Iterable[object], echo: Callable[..., None]
) -> None:
    """Names the corrupt files that any process has met."""
    folders = [images for images in sets if isinstance(images, ImageFolder)]
    found = from_all(processes, [str(path) for images in folders for path in images.corrupt])
    corrupt = sorted(set().union(*found))
    if corrupt:
        echo(corrupt_line(corrupt))


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
