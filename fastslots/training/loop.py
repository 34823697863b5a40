"""The training loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslots.files import write_text
from fastslots.slate import SLATE
from fastslots.training.batches import StepBatches
from fastslots.training.checkpoints import find_checkpoint, last_step
from fastslots.training.loading import ImageSet, step_images
from fastslots.training.processes import on_main
from fastslots.training.recipe import Recipe
from fastslots.training.run import TrainingRun
from fastslots.training.step import DivergedError
from fastslots.training.stopping import Stopping, raise_stopped


def train(
    model: SLATE,
    recipe: Recipe,
    train_set: ImageSet,
    validation_set: ImageSet,
    run: Path,
    *,
    resume: bool = False,
    num_workers: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Trains SLATE and writes metrics, pictures and checkpoints to a run folder.

    Under ``accelerate launch`` or ``torchrun`` every process calls this, on a file system that all see;
    they share each step's batch. Every noise follows from the seed, the step and the image's place in the
    batch. So any number of processes and micro-batches gives the same losses up to rounding, and a
    resumed run goes on as if it had not stopped: on a CPU to the same bits.

    Args:
        model: On the device to train on; cast to float64 if that is the recipe's precision.
        recipe: The numbers.
        train_set: Images in [0, 1].
        validation_set: The same, held out.
        run: An existing folder for ``metrics.jsonl``, ``tensorboard/``, ``samples/`` and ``checkpoints/``.
        resume: Go on from the last checkpoint in it, or from the start if it has none.
        num_workers: Processes that load images for this one; 0 loads in this one.
        settings: Written to ``config.json`` once nothing stands against going on.

    Returns:
        The folder of the last checkpoint.

    Raises:
        OSError: If something cannot be read or written, or the run folder vanishes. Earlier checkpoints
            are untouched.
        ValueError: If there is nothing left to do, the batch cannot be shared evenly, or the checkpoint is
            of another configuration.
        DivergedError: If a loss or gradient is not finite. Earlier checkpoints are untouched.
        KeyboardInterrupt: If interrupted (SIGINT), after the step under way is done and a checkpoint
            written. Several processes stop together at the next line of the log. A second interrupt ends
            at once and leaves the earlier checkpoints.
        Terminated: The same for SIGTERM.
    """
    training = TrainingRun(model, recipe, validation_set, run, resume=resume)
    if settings is not None:
        text = json.dumps(settings, indent=2) + "\n"
        on_main(training.accelerator, lambda: write_text(run / "config.json", text))
    first = training.state.step
    batches = StepBatches(len(train_set), training.parts, recipe.seed, first, recipe.steps)
    images = step_images(train_set, batches, training.device, training.dtype, num_workers)
    try:
        # Closed at once, whatever ends the run: the workers of a loader do not listen to signals.
        with training, Stopping() as stopping, closing(images):
            for micro_batches in images:
                _step(training, micro_batches, stopping)
    except DivergedError as error:
        raise DivergedError(f"{error}; {_advice(run, recipe)}") from error
    return find_checkpoint(run, "last")


def _step(training: TrainingRun, images: list[Tensor], stopping: Stopping) -> None:
    """One step and what is due after it."""
    training.step(images)
    recipe, step = training.recipe, training.state.step
    last = step == recipe.steps
    logs = step % recipe.log_every == 0 or last
    validates = step % recipe.validate_every == 0 or last
    if logs:
        training.log(images)
    if validates:
        training.validate()
    # Several processes may see a signal at different steps: they ask one another now and then alone.
    alone = training.accelerator.num_processes == 1
    stop = stopping.signal if alone else training.agree(stopping.signal) if logs else 0
    if stop and not last:
        if not validates:
            training.save()
        raise_stopped(stop)


def _advice(run: Path, recipe: Recipe) -> str:
    """How to go on after a run diverged."""
    step = last_step(run)
    other = f"--lr-dvae {recipe.lr_dvae / 2:g} --lr-main {recipe.lr_main / 2:g}"
    if step:
        return (
            f"its last checkpoint, of step {step}, is whole: go on from there with other settings, "
            f"such as: fastslots train --resume {run} {other}"
        )
    return f"it has no checkpoint yet: start again with other settings, such as {other}"
