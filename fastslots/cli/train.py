"""``fastslots train``."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastslots.cli.flags import with_flags
from fastslots.data.folder import ImageFolder
from fastslots.data.source import DataSource
from fastslots.devices import choose_device
from fastslots.slate import SLATE, SLATEConfig
from fastslots.training.checkpoints import write_atomically
from fastslots.training.loop import train as run_training
from fastslots.training.recipe import Recipe, derive_seed

# A GPU gets the paper's settings, the defaults. These are sized for two CPU cores and a few minutes, which
# decide everything: small images without a mirror, and tokens hot at first, so that more of them are used.
CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 32,
        "vocab_size": 64,
        "d_model": 64,
        "num_decoder_blocks": 2,
        "num_decoder_heads": 4,
        "dropout": 0.0,
        "slot_size": 64,
        "mlp_hidden_size": 64,
        "num_iterations": 3,
    },
    "recipe": {
        "steps": 2_400,
        "batch_size": 16,
        "lr_dvae": 3e-3,
        "lr_main": 1e-3,
        "warmup_steps": 200,
        "tau_start": 2.0,
        "tau_steps": 1_200,
        "validate_every": 800,
        "validation_images": 128,
        "log_every": 100,
    },
    "data": {"num_scenes": 2_000, "max_objects": 4, "mirror": False, "cache": "runs/scene-cache"},
}


@with_flags(
    {"model": SLATEConfig, "recipe": Recipe, "data": DataSource},
    on_cpu=CPU_SETTINGS,
    without={"image_channels"},  # images are read and rendered as RGB
)
def train(
    output: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/train-DATE-TIME.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder's last checkpoint and settings.")
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
        int, typer.Option(min=0, help="Processes that load images; 0: in this one.")
    ] = 0,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Trains SLATE with implicit slot attention; writes losses, pictures and checkpoints.

    The run folder holds config.json, metrics.jsonl, samples/*.png and checkpoints/.
    """
    where = choose_device(device)
    if resume is not None:
        if output is not None or settings != "auto" or any(flags["model"]) or any(flags["data"]):
            raise ValueError(
                "resume takes model, data, settings and folder from the run: leave their flags out"
            )
        run, saved = resume, read_config(resume)
    else:
        run = output or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"
        saved = _preset(settings, where)
    chosen = {group: saved[group] | flags[group] for group in flags}
    config, recipe = SLATEConfig(**chosen["model"]), Recipe(**chosen["recipe"])
    source = DataSource(**_absolute(chosen["data"]))

    # Worker processes cannot share the GPU of this one.
    render_on = torch.device("cpu") if workers else where
    train_set = source.open("train", config.image_size, render_on)
    validation_set = source.open("val", config.image_size, render_on)
    if resume is None:
        _new_run(run)
    parts: dict[str, Any] = {"model": config, "recipe": recipe, "data": source}
    text = json.dumps({name: dataclasses.asdict(part) for name, part in parts.items()}, indent=2)
    write_atomically(run / "config.json", text + "\n")
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = SLATE(config).to(where)
    typer.echo(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {where}, "
        f"{len(train_set)} images to train on, {len(validation_set)} held out; run folder {run}"
    )
    try:
        last = run_training(
            model,
            recipe,
            train_set,
            validation_set,
            run,
            resume=resume is not None,
            num_workers=workers,
        )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: fastslots train --resume {run}", err=True)
        raise typer.Exit(130) from None
    for images in (train_set, validation_set):
        if isinstance(images, ImageFolder) and images.corrupt:
            names = ", ".join(str(path) for path in images.corrupt)
            typer.echo(f"corrupt images left out or replaced: {len(images.corrupt)} ({names})")
    typer.echo(f"wrote {last} and the pictures in {run / 'samples'}")


def _preset(settings: str, device: torch.device) -> dict[str, dict[str, Any]]:
    if settings not in ("auto", "cpu", "gpu"):
        raise ValueError(f"settings must be auto, cpu or gpu; got {settings!r}")
    if settings == "cpu" or (settings == "auto" and device.type == "cpu"):
        return CPU_SETTINGS
    return {"model": {}, "recipe": {}, "data": {}}


def _absolute(data: dict[str, Any]) -> dict[str, Any]:
    """Paths that mean the same when the run is resumed from another folder; a cache "none" is None."""
    paths = dict(data)
    if paths.get("data", "scenes") != "scenes":
        paths["data"] = str(Path(paths["data"]).absolute())
    if paths.get("cache") is not None:
        none = paths["cache"].lower() in ("", "none")
        paths["cache"] = None if none else str(Path(paths["cache"]).absolute())
    return paths


def _new_run(run: Path) -> None:
    """Makes the run folder."""
    if (run / "config.json").exists():
        raise FileExistsError(
            f"{run} holds a run already: choose another --output, or go on with --resume {run}"
        )
    run.mkdir(parents=True, exist_ok=True)


def read_config(run: Path) -> dict[str, dict[str, Any]]:
    """The settings of a run, by group.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its config.json is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run: it has no config.json")
    try:
        config: dict[str, dict[str, Any]] = json.loads(path.read_text())
        groups = {name: dict(config[name]) for name in ("model", "recipe", "data")}
        SLATEConfig(**groups["model"]), Recipe(**groups["recipe"]), DataSource(**groups["data"])
        return groups
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
