"""The training loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslots.data.split_record import write_record
from fastslots.data.splits import SplitFiles
from fastslots.files import lock_run, write_text
from fastslots.slate import SLATE
from fastslots.training.batches import StepBatches
from fastslots.training.checkpoints import find_checkpoint, last_step
from fastslots.training.loading import ImageSet, step_images
from fastslots.training.processes import join_processes, on_main
from fastslots.training.recipe import Recipe
from fastslots.training.run import TrainingRun
from fastslots.training.step import DivergedError
from fastslots.training.stopping import Stopping, raise_stopped

STEPS_BETWEEN_QUESTIONS = 10  # asking the other processes waits for the device


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
    image_files: SplitFiles | None = None,
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
        image_files: Names of the files of each split, written to ``images.json`` before that.

    Returns:
        The folder of the last checkpoint.

    Raises:
        OSError: If something cannot be read or written, or the run folder vanishes. Earlier checkpoints
            are untouched.
        ValueError: If there is nothing left to do, the batch cannot be shared evenly, or the checkpoint is
            of another configuration.
        DivergedError: If a loss or gradient is not finite. Earlier checkpoints are untouched.
        KeyboardInterrupt: If interrupted (SIGINT), after the step under way is done and a checkpoint
            written. Several processes stop together, within ten steps. A second interrupt ends at once
            and leaves the earlier checkpoints.
        Terminated: The same for SIGTERM.
    """
    processes = join_processes(model.out.weight.device)
    with lock_run(run) if processes.is_main_process else nullcontext():
        training = TrainingRun(model, recipe, validation_set, run, resume=resume)
        if image_files is not None:
            files = image_files
            on_main(processes, lambda: write_record(run, files))
        if settings is not None:
            text = json.dumps(settings, indent=2) + "\n"
            on_main(processes, lambda: write_text(run / "config.json", text))
        try:
            _train(training, train_set, num_workers)
        except DivergedError as error:
            raise DivergedError(f"{error}; {_advice(run, recipe)}") from error
    return find_checkpoint(run, "last")


def _train(training: TrainingRun, train_set: ImageSet, num_workers: int) -> None:
    """All steps that are left."""
    recipe, first = training.recipe, training.state.step
    batches = StepBatches(len(train_set), training.parts, recipe.seed, first, recipe.steps)
    images = step_images(train_set, batches, training.device, training.dtype, num_workers)
    # Closed at once, whatever ends the run: the workers of a loader do not listen to signals.
    with training, Stopping() as stopping, closing(images):
        for micro_batches in images:
            _step(training, micro_batches, stopping)


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
    stop = stopping.signal
    if training.accelerator.num_processes > 1:  # which may have seen a signal at different steps
        asks = step % STEPS_BETWEEN_QUESTIONS == 0 or logs
        stop = training.agree(stop) if asks else 0
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
