"""The training loop."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslots.data.images import ImageSet
from fastslots.data.split_record import write_record
from fastslots.data.splits import SplitFiles
from fastslots.files import write_text
from fastslots.models.recipe import Recipe
from fastslots.models.trainable import Trainable
from fastslots.training.batches import StepBatches
from fastslots.training.checked_images import CheckedImages
from fastslots.training.checkpoints import find_checkpoint, last_step
from fastslots.training.folder import lock_run
from fastslots.training.loading import step_images
from fastslots.training.processes import from_all, join_processes, on_main
from fastslots.training.run import TrainingRun
from fastslots.training.step import DivergedError
from fastslots.training.stopping import Stopping, raise_stopped
from fastslots_kernels.checks import check_count, check_is

STEPS_BETWEEN_QUESTIONS = 10  # asking the other processes waits for the device


def train(
    trainable: Trainable,
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
    """Trains a model and writes metrics, pictures and checkpoints to a run folder.

    Under ``accelerate launch`` or ``torchrun`` every process calls this, on a file system that all see;
    they share each step's batch. Every noise follows from the seed, the step and the image's place in the
    batch. So any number of processes and micro-batches gives the same losses up to rounding, and a
    resumed run goes on as if it had not stopped: on a CPU to the same bits.

    Args:
        trainable: The model, on the device to train on; cast to float64 if that is the recipe's precision.
        recipe: The numbers.
        train_set: Images of the model's size in [0, 1]. Each is checked when it is loaded, but of images on a
            CUDA device, where a look would wait, the range of the first alone.
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
        TypeError: If an image is no floating point tensor, num_workers no int, trainable no Trainable, or
            recipe no Recipe.
        ValueError: If a method of the trainable does not give what it says, there is nothing left to do, the
            batch cannot be shared evenly, the checkpoint is of another configuration, a data set is empty or
            differs between processes, or an image has another size or values beyond [0, 1].
        DivergedError: If a loss or gradient is not finite. Earlier checkpoints are untouched.
        KeyboardInterrupt: If interrupted (SIGINT), after the step under way is done and a checkpoint
            written. Several processes stop together, within ten steps. A second interrupt ends at once
            and leaves the earlier checkpoints.
        Terminated: The same for SIGTERM.
    """
    check_is("trainable", trainable, Trainable, "wrap the model in one")
    check_is("recipe", recipe, Recipe)
    num_workers = check_count("num_workers", num_workers, 0)
    shape = trainable.model.config.image_shape
    train_set = CheckedImages("train_set", train_set, shape)
    validation_set = CheckedImages("validation_set", validation_set, shape)
    processes = join_processes(trainable.model.device)
    _check_same(from_all(processes, (len(train_set), len(validation_set))))
    with lock_run(run) if processes.is_main_process else nullcontext():
        training = TrainingRun(trainable, recipe, train_set, validation_set, run, resume=resume)
        on_main(processes, lambda: _write_settings(run, settings, image_files))
        try:
            _train(training, train_set, num_workers)
        except DivergedError as error:
            raise DivergedError(f"{error}; {_advice(run, recipe, settings is None)}") from error
    return find_checkpoint(run, "last")


def _check_same(sizes: list[tuple[int, int]]) -> None:
    """Raises unless the data sets have the same sizes in every process, which share each step's images."""
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{train} and {held_out}" for train, held_out in sizes)
        raise ValueError(
            "train_set and validation_set must hold the same images in every process; got "
            f"{listed} images: see that all of them can read every file"
        )


def _write_settings(
    run: Path, settings: Mapping[str, Any] | None, image_files: SplitFiles | None
) -> None:
    if image_files is not None:
        write_record(run, image_files)
    if settings is not None:
        write_text(run / "config.json", json.dumps(settings, indent=2) + "\n")


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


def resume_command(run: Path) -> str:
    """What to type to go on with a run, or to begin it again if it has no checkpoint."""
    return f"fastslots train --resume {shlex.quote(str(run))}"


def _advice(run: Path, recipe: Recipe, called: bool) -> str:
    """How to go on after a run diverged, by the command, or where `train` was called by it."""
    step = last_step(run)
    halved = {n: f"{value / 2:g}" for n, value in asdict(recipe).items() if n.startswith("lr_")}
    if called:
        recipe_of = f"{type(recipe).__name__}({', '.join(f'{n}={v}' for n, v in halved.items())})"
        command = f"train(..., {recipe_of}, resume=True)"
    else:
        flags = (f"--{name.replace('_', '-')} {value}" for name, value in halved.items())
        command = " ".join([resume_command(run), *flags])
    if step:
        return (
            f"its last checkpoint, of step {step}, is whole: go on from there with other settings, "
            f"such as: {command}"
        )
    return f"it has no checkpoint yet: begin again with other settings, such as: {command}"
