"""The training loop."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fastslots.slate import SLATE
from fastslots.training.batches import StepBatches
from fastslots.training.checkpoints import (
    find_checkpoint,
    has_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    write_atomically,
)
from fastslots.training.progress import TrainingProgress
from fastslots.training.recipe import Plateau, Recipe, derive_seed
from fastslots.training.validation import draw_panels, validate


class ImageSet(Protocol):
    """A sized data set of images ``[3, S, S]``."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One image, ``[3, S, S]`` in [0, 1]."""
        ...


def train(
    model: SLATE,
    recipe: Recipe,
    train_set: ImageSet,
    validation_set: ImageSet,
    run: Path,
    *,
    resume: bool = False,
    num_workers: int = 0,
) -> Path:
    """Trains SLATE and writes metrics, pictures and checkpoints to a run folder.

    Every noise of a step follows from (seed, step), so that a resumed run goes on as if it had not
    stopped: on a CPU to the same bits.

    Args:
        model: On the device to train on.
        recipe: The numbers.
        train_set: Images in [0, 1].
        validation_set: The same, held out.
        run: Folder for ``metrics.jsonl``, ``samples/`` and ``checkpoints/``.
        resume: Go on from the last checkpoint in it, or from the start if it has none.
        num_workers: Processes that load images; 0 loads in this one.

    Returns:
        The folder of the last checkpoint.

    Raises:
        OSError: If something cannot be written. Earlier checkpoints are untouched.
        ValueError: If there is nothing left to do, or the checkpoint is of another configuration.
        KeyboardInterrupt: If interrupted, after the step under way is done and a checkpoint written.
            (A second interrupt ends at once and leaves the earlier checkpoints.)
    """
    trainer = _Trainer(model, recipe, validation_set, run)
    first_step = trainer.resume() if resume else 0
    if first_step >= recipe.steps:
        raise ValueError(
            f"steps must be above {first_step}, where the run stands; got {recipe.steps}"
        )
    loader: DataLoader[Tensor] = DataLoader(
        train_set,  # type: ignore[arg-type] # torch's Dataset is nominal
        batch_sampler=StepBatches(
            len(train_set), recipe.batch_size, recipe.seed, first_step, recipe.steps
        ),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=trainer.device.type == "cuda" and num_workers > 0,
    )
    progress = TrainingProgress(first_step, recipe.steps, recipe.batch_size)
    with progress, _interrupts() as interrupted:
        for step, batch in enumerate(loader, first_step + 1):
            trainer.step(step - 1, batch.to(trainer.device, non_blocking=True))
            last = step == recipe.steps
            if step % recipe.log_every == 0 or last:
                progress.report(step, trainer.log(step))
            progress.advance()
            validated = step % recipe.validate_every == 0 or last
            if validated:
                progress.report_validation(step, trainer.validate(step))
            if interrupted() and not last:
                if not validated:
                    trainer.save(step, best=False)
                raise KeyboardInterrupt
    return find_checkpoint(run, "last")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Lets a step finish before an interrupt ends the run: half a step must not become a checkpoint."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set  # signals reach the main thread alone
        return

    def first_interrupt(*_: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, first_interrupt)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


class _Trainer:
    """One run: model, optimiser, schedules, files."""

    def __init__(self, model: SLATE, recipe: Recipe, validation_set: ImageSet, run: Path) -> None:
        self.model, self.recipe, self.run = model, recipe, run
        self.device = model.out.weight.device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        dvae = {id(p) for p in model.dvae.parameters()}
        self.optimizer = torch.optim.Adam(
            [
                {"params": [p for p in self.parameters if id(p) in dvae]},
                {"params": [p for p in self.parameters if id(p) not in dvae]},
            ],
            fused=True,
        )
        self.plateau = Plateau()
        self.validation_batches = self._batches(validation_set)
        self.interval: list[Tensor] = []
        self.interval_start = time.perf_counter()

    def resume(self) -> int:
        """Takes up the last checkpoint of the run; returns its step, 0 if there is none yet."""
        step = 0
        if has_checkpoint(self.run):
            folder = find_checkpoint(self.run, "last")
            step, self.plateau = restore_checkpoint(folder, self.model, self.optimizer)
        self._forget_after(step)
        return step

    def step(self, step: int, image: Tensor) -> None:
        """One optimiser step (from 0) on a batch ``[B, 3, S, S]``."""
        recipe, dvae, main = self.recipe, *self.optimizer.param_groups
        dvae["lr"] = recipe.lr_dvae * self.plateau.factor
        main["lr"] = recipe.lr_main * self.plateau.factor * recipe.warmup(step)
        torch.manual_seed(derive_seed(recipe.seed, "step", step))
        self.model.train()
        out = self.model(image, recipe.tau(step))
        self.optimizer.zero_grad()
        (out.cross_entropy + out.mse).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip, norm_type=float("inf"))
        self.optimizer.step()
        # On the device: reading them here would wait for it at every step.
        self.interval.append(torch.stack([out.cross_entropy.detach(), out.mse.detach(), norm]))

    def log(self, step: int) -> dict[str, float]:
        """Writes and returns the means since the last call."""
        means = torch.stack(self.interval).double().mean(0).tolist()
        elapsed = time.perf_counter() - self.interval_start
        dvae, main = self.optimizer.param_groups
        row = {
            "cross_entropy": means[0],
            "mse": means[1],
            "gradient_linf_norm": means[2],
            "lr_dvae": dvae["lr"],
            "lr_main": main["lr"],
            "tau": self.recipe.tau(step - 1),
            "images_per_second": len(self.interval) * self.recipe.batch_size / elapsed,
        }
        self._write(step, "train", row)
        self.interval, self.interval_start = [], time.perf_counter()
        return row

    def validate(self, step: int) -> dict[str, float]:
        """Validates, writes a checkpoint, draws a picture; returns the losses."""
        start = time.perf_counter()
        seed = derive_seed(self.recipe.seed, "validation")
        row = validate(self.model, self.validation_batches, self.recipe.tau(step - 1), seed)
        best = self.plateau.update(row["loss"], self.recipe.patience)
        row["lr_factor"] = self.plateau.factor
        self._write(step, "validation", row)
        self.save(step, best=best)
        picture = torch.cat(self.validation_batches)[: self.recipe.picture_images]
        draw_panels(self.model, picture, self.run / "samples" / f"step-{step:09d}.png", seed)
        self.interval_start += time.perf_counter() - start
        return row

    def save(self, step: int, *, best: bool) -> None:
        """Writes a checkpoint."""
        keep = self.recipe.keep_checkpoints
        save_checkpoint(
            self.run, step, self.model, self.optimizer, self.plateau, best=best, keep=keep
        )

    def _batches(self, images: ImageSet) -> list[Tensor]:
        count = min(len(images), self.recipe.validation_images)
        subset: Subset[Tensor] = Subset(images, range(count))  # type: ignore[arg-type] # as above
        loader = DataLoader(subset, batch_size=self.recipe.batch_size)
        return [batch.to(self.device) for batch in loader]

    @property
    def _metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    def _write(self, step: int, kind: str, row: dict[str, Any]) -> None:
        try:
            with self._metrics.open("a") as file:
                file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
        except OSError as error:
            raise OSError(
                f"{self._metrics} could not be written: {error}; checkpoints are as they were"
            ) from error

    def _forget_after(self, step: int) -> None:
        """Drops the rows of steps that will be done again."""
        if self._metrics.exists():
            rows = [line for line in self._metrics.read_text().splitlines() if line.endswith("}")]
            kept = [row + "\n" for row in rows if json.loads(row)["step"] <= step]
            write_atomically(self._metrics, "".join(kept))
