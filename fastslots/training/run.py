"""One training run: model, optimiser, schedules, and what it writes down."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fastslots.data.images import ImageSet
from fastslots.models.modes import eval_mode
from fastslots.models.recipe import Recipe
from fastslots.models.trainable import Trainable
from fastslots.training.batches import BatchParts
from fastslots.training.checkpoints import (
    last_step,
    save_checkpoint,
    tidy,
)
from fastslots.training.folder import check_run_folder
from fastslots.training.loading import validation_batches
from fastslots.training.metrics import Interval, RunLog, interval_means, memory_mib
from fastslots.training.processes import make_accelerator, on_main
from fastslots.training.progress import TrainingProgress
from fastslots.training.rehearsal import rehearse
from fastslots.training.restoring import restore_last
from fastslots.training.step import DivergedError, TrainingStep
from fastslots.training.validation import draw, validate


class TrainingRun:
    """A run that stands at some step, in one of its processes.

    Methods without another word must be called by all processes at the same step.

    Args:
        trainable: The model, on the device to train on.
        recipe: The numbers.
        train_set: Images in [0, 1] that the model may learn from before the first step.
        validation_set: Held-out images in [0, 1].
        folder: The run folder, which exists.
        resume: Take up the folder's last checkpoint, if it has one.

    Attributes:
        state: Where the run stands.

    Raises:
        OSError: If the folder has vanished, or holds checkpoints that are not to be taken up.
        ValueError: If nothing is left to do, the batch cannot be shared evenly, or the checkpoint is of
            another configuration or damaged.
    """

    def __init__(
        self,
        trainable: Trainable,
        recipe: Recipe,
        train_set: ImageSet,
        validation_set: ImageSet,
        folder: Path,
        *,
        resume: bool,
    ) -> None:
        self.trainable, self.model = trainable, trainable.model
        self.accelerator = make_accelerator(self.model.device, recipe.precision)
        self.device = self.accelerator.device
        # Of a tensor over all processes.
        self._mean, self._sum = (
            partial(self.accelerator.reduce, reduction=r) for r in ("mean", "sum")
        )
        self.dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self.model.to(self.dtype)
        self.recipe, self.folder = recipe, folder
        self.parts = BatchParts(
            recipe.batch_size,
            recipe.accumulation,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        rehearse(trainable, recipe)
        on_main(self.accelerator, lambda: _prepare(folder, recipe.steps, resume=resume))
        self.training_step = TrainingStep(trainable, recipe, self.accelerator, self.parts)
        self.state = restore_last(folder, self.model, self.training_step.optimizers)
        if not self.state.step:
            trainable.begin(train_set)
        self._load_validation(validation_set)

    def __enter__(self) -> Self:
        self.interval = self._new_interval(self.state.interval)
        self.progress = TrainingProgress(
            self.state.step,
            self.recipe.steps,
            type(self.trainable),
            shown=self.accelerator.is_main_process,
        )
        on_main(self.accelerator, self._open_log)
        self.progress.start()
        if self.recipe.compile:
            self.progress.say("compiling the training step: the first takes minutes on a CPU")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.accelerator.is_main_process:
            self.output.close()

    def step(self, images: list[Tensor]) -> None:
        """One optimiser step on this process's micro-batches, ``[B, C, S, S]`` each."""
        self.interval.add(self.training_step(self.state.step, images, self.state.plateau.factor))
        self.state.step += 1
        self.progress.advance()

    def log(self, images: list[Tensor]) -> None:
        """Writes and shows the means since the last call; `images` are those of the last step."""
        rows = self.interval.means(self.state.step, self._mean)
        # Before a look at the images, which takes time and memory of its own.
        images_per_second = self.interval.steps_per_second() * self.recipe.batch_size
        memory = memory_mib(self.device)
        row = {
            **interval_means(self.training_step.columns, rows),
            **{f"lr_{name}": rate for name, rate in self.training_step.rates.items()},
            **self.recipe.schedule(self.state.step - 1),
            **self._look(images),
            "images_per_second": images_per_second,
            "memory_mib": memory,
        }
        on_main(self.accelerator, lambda: self.output.write(self.state.step, "train", row))
        self.progress.report(self.state.step, row)
        self.interval = self._new_interval([])

    def validate(self) -> None:
        """Validates, draws a picture and writes a checkpoint."""
        with self.interval.pause():
            self._validate()
            try:
                on_main(self.accelerator, self._draw)
            except Exception:  # whatever is wrong with a picture, the steps are not
                self.save()
                raise
            self.save()

    def save(self) -> None:
        """Writes a checkpoint.

        Raises:
            DivergedError: If the weights, or a loss or gradient since the last log, are not finite.
            OSError: If it cannot be written.
        """
        self.state.interval = self.interval.means(self.state.step, self._mean)
        on_main(self.accelerator, self._save)

    def agree(self, signal: int) -> int:
        """The greatest of the signals that the processes have seen, or 0."""
        seen = torch.tensor([signal], device=self.device)
        return int(self.accelerator.gather(seen).max())

    def _validate(self) -> None:
        step, plateau = self.state.step, self.state.plateau
        row = validate(
            self.trainable,
            self.validation,
            self.recipe.schedule(step - 1),
            self.recipe.seed,
            first_image=self.first_image,
            add_up=self._sum,
        )
        if not math.isfinite(row["loss"]):
            raise DivergedError(f"the held-out loss after step {step} is {row['loss']:g}")
        if plateau.update(row["loss"], self.recipe.patience):
            self.state.best_step = step
        row["lr_factor"] = plateau.factor
        on_main(self.accelerator, lambda: self.output.write(step, "validation", row))
        self.progress.report_validation(step, row)

    def _look(self, images: list[Tensor]) -> dict[str, float]:
        """What is to be seen of a step's images, without noise; means over all processes."""
        names = self.trainable.looks
        if not names:
            return {}
        sums = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        with torch.no_grad(), eval_mode(self.model):
            keys = self.training_step.keys(self.state.step - 1)
            for image, image_keys in zip(images, keys, strict=True):
                sums += self.trainable.look(image, image_keys)
        means = (self._sum(sums) / self.recipe.batch_size).tolist()
        if all(map(math.isnan, means)):
            raise DivergedError(f"after step {self.state.step} the model makes NaN of its images")
        return dict(zip(names, means, strict=True))

    def _new_interval(self, rows: list[list[float]]) -> Interval:
        return Interval(self.training_step.columns, rows, self.device)

    def _load_validation(self, images: ImageSet) -> None:
        """Loads this process's part of the held-out images, and the main process's pictures."""
        count = min(len(images), self.recipe.validation_images)
        first, end = (
            count * process // self.parts.processes
            for process in (self.parts.process, self.parts.process + 1)
        )
        self.first_image = first
        self.validation = validation_batches(
            images, range(first, end), self.parts.size, self.device, self.dtype
        )
        shown = min(count, self.recipe.picture_images if self.accelerator.is_main_process else 0)
        self.pictured = validation_batches(images, range(shown), shown, self.device, self.dtype)

    def _open_log(self) -> None:
        self.output = RunLog(self.folder, self.state.step)

    def _draw(self) -> None:
        """Writes a picture and shows it in TensorBoard."""
        check_run_folder(self.folder)
        path = self.folder / "samples" / f"step-{self.state.step:09d}.png"
        try:
            draw(self.trainable, self.pictured[0], path, self.recipe.seed)
        except OSError as error:
            check_run_folder(self.folder)
            raise OSError(
                f"{path} could not be written: {error}; checkpoints are as they were"
            ) from error
        self.output.show(self.state.step, path)

    def _save(self) -> None:
        weights = [parameter.detach() for parameter in self.model.parameters()]
        if not torch.nn.utils.get_total_norm(weights, norm_type=math.inf).isfinite():
            raise DivergedError(f"the weights after step {self.state.step} are not finite")
        save_checkpoint(
            self.folder,
            self.state,
            self.model,
            self.training_step.optimizers,
            keep=self.recipe.keep_checkpoints,
        )


def _prepare(folder: Path, steps: int, *, resume: bool) -> None:
    """Checks that a run may begin in a folder, and removes what a killed one left half done."""
    check_run_folder(folder)
    if resume:
        tidy(folder)
    done = last_step(folder)
    if done and not resume:
        raise FileExistsError(f"{folder} holds checkpoints of a run already: go on from its last")
    if steps <= done:
        raise ValueError(
            f"steps must be above {done}, where the run stands; got {steps}: give more to go on"
        )
