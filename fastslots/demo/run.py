"""The demo from the first scene to the last picture."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastslots._extras import require
from fastslots.benchmark.measure.memory import memory_use
from fastslots.cli.run_config import read_config
from fastslots.data.scenes import Scenes
from fastslots.data.source import DataSource, Split
from fastslots.demo.arms import ARMS, ITERATIONS, MORE_ITERATIONS, train_command
from fastslots.demo.pictures import draw_beside, draw_objects
from fastslots.demo.plot import plot_demo
from fastslots.demo.processes import render, run_together
from fastslots.demo.record import (
    FILE,
    METRICS,
    ArmRow,
    DemoResults,
    finite_numbers,
    read_log,
)
from fastslots.environment import describe_environment
from fastslots.evaluation import evaluate
from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.models.autoencoder.recipe import CPU_SETTINGS
from fastslots.training.checkpoints import find_checkpoint, last_step
from fastslots.training.validation import validation_keys

HELD_OUT = 320
"""Scenes that are measured."""
_CPU = torch.device("cpu")


def run_demo(
    folder: Path, seed: int, say: Callable[[str], None], *, tiny: bool = False
) -> DemoResults:
    """Renders scenes, trains both arms, and measures and draws what they learned.

    `folder`, which is made anew, gets a run folder for each arm, ``demo.json``, ``objects.png``,
    ``beside.png`` and ``curves.png``.

    Args:
        folder: For everything.
        seed: Of weights, order of the images and noise.
        say: Called with what is being done.
        tiny: A dry run that takes seconds and learns nothing.

    Raises:
        RuntimeError: If a training fails.
        ImportError: If something is not installed.
        OSError: If a file cannot be written.
    """
    require("matplotlib", "benchmark")  # before the minutes, not after
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    commands = {arm.name: train_command(arm, folder / arm.name, seed, tiny=tiny) for arm in ARMS}
    started = time.perf_counter()
    if not tiny:
        render_scenes(say)
    say(f"training both ({time.perf_counter() - started:.0f} s so far)")
    run_together(commands, say)
    say(f"measuring both on held-out scenes ({time.perf_counter() - started:.0f} s so far)")
    logging.getLogger("fastslots").setLevel(logging.ERROR)  # the trainings have said what is frozen
    runs = [folder / name for name in commands]
    results = measure(runs)
    results.save(folder / FILE)
    models = {run.name: _model(run, more=True) for run in runs}
    scenes = _held_out(runs[0], models[ARMS[0].name])
    draw_objects(models[ARMS[0].name], scenes, folder / "objects.png")
    draw_beside(models, scenes, folder / "beside.png")
    plot_demo(results, folder / "curves.png")
    return results


def render_scenes(say: Callable[[str], None]) -> None:
    """Renders the demo's scenes into their cache, on all cores.

    Raises:
        OSError: If the cache cannot be written.
    """
    say("rendering scenes")
    data = CPU_SETTINGS["data"]
    counts: dict[Split, int] = {
        "train": data["num_scenes"],
        "val": CPU_SETTINGS["recipe"]["validation_images"],
        "test": HELD_OUT,
    }
    render(DataSource(**data), CPU_SETTINGS["model"]["image_size"], counts)


def measure(runs: Sequence[Path]) -> DemoResults:
    """What the last models of some runs make of held-out scenes, and what their logs say.

    Raises:
        OSError: If a file cannot be read.
    """
    return DemoResults(describe_environment(_CPU), [_row(run) for run in runs])


def _model(run: Path, *, more: bool) -> SlotAutoencoder:
    """The last model of a run that is over, with its own number of iterations or with more."""
    done, steps = last_step(run), read_config(run)["recipe"]["steps"]
    if done != steps:
        raise RuntimeError(f"the training in {run} must have taken {steps} steps; got {done}")
    folder = find_checkpoint(run, "last")
    model = SlotAutoencoder.from_pretrained(folder)
    if more:
        iterations = model.config.num_iterations + MORE_ITERATIONS - ITERATIONS
        model = SlotAutoencoder.from_pretrained(folder, num_iterations=iterations)
    return model


def _steps(model: SlotAutoencoder) -> int:
    """Steps of slot attention, the tracked one included."""
    tracked = 0 if model.config.gradient == "unrolled" else 1
    return model.config.num_iterations + tracked


def _held_out(run: Path, model: SlotAutoencoder) -> Scenes:
    """The test scenes of a run."""
    source = DataSource(**read_config(run)["data"])
    scenes = source.open("test", model.config.image_size, model.device)
    assert isinstance(scenes, Scenes)
    return scenes


def _row(run: Path) -> ArmRow:
    model = _model(run, more=False)
    scenes = _held_out(run, model)
    num_images = min(HELD_OUT, len(scenes))
    found = {
        str(_steps(measured)): evaluate(measured, scenes, num_images=num_images).means
        for measured in (model, _model(run, more=True))
    }
    recipe = read_config(run)["recipe"]
    curve, step_ms = read_log(run)
    return ArmRow(
        run.name,
        dataclasses.asdict(model.config),
        finite_numbers(recipe),
        step_ms,
        _kept_bytes(model, scenes, min(recipe["batch_size"], len(scenes))),
        curve,
        num_images,
        {
            steps: {name: list(mean[:2]) for name in METRICS if (mean := means.get(name))}
            for steps, means in found.items()
        },
    )


def _kept_bytes(model: SlotAutoencoder, scenes: Scenes, batch_size: int) -> int:
    """What a step's forward keeps for its backward, in float32."""
    image = torch.stack(scenes.__getitems__(list(range(batch_size)))).to(model.device)
    keys = validation_keys(0, batch_size, 0).to(model.device)

    def forward() -> tuple[Tensor, Tensor]:
        return model.losses(image, keys)

    def backward(losses: tuple[Tensor, Tensor]) -> None:
        losses[0].backward()
        model.zero_grad()

    backward(forward())
    # Held meanwhile: PyTorch would warn of what it frees without having seen it allocated.
    held = model.slot_encoder.slot_attention.iterations_used
    kept_bytes = memory_use(forward, backward, model.device).kept_bytes
    del held
    return kept_bytes
