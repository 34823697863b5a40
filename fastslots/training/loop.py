"""The training loop."""

from __future__ import annotations

import json
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastslots.slate import SLATE
from fastslots.training.batches import StepBatches
from fastslots.training.checkpoints import find_checkpoint, restore_checkpoint, save_checkpoint
from fastslots.training.progress import TrainingProgress
from fastslots.training.recipe import Plateau, Recipe, derive_seed
from fastslots.training.validation import draw_panels, validate


def train(
    model: SLATE,
    recipe: Recipe,
    train_set: Dataset[Tensor],
    validation_set: Dataset[Tensor],
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
        train_set: Images ``[3, S, S]`` in [0, 1], a sized data set.
        validation_set: The same, held out.
        run: Folder for ``metrics.jsonl``, ``samples/`` and ``checkpoints/``.
        resume: Go on from the last checkpoint in it.
        num_workers: Processes that load images; 0 loads in this one.

    Returns:
        The folder of the last checkpoint.

    Raises:
        OSError: If something cannot be written. Earlier checkpoints are untouched.
        ValueError: If there is nothing left to do, or the checkpoint is of another configuration.
        KeyboardInterrupt: If interrupted, after a checkpoint was written.
    """
    trainer = _Trainer(model, recipe, validation_set, run)
    first_step = trainer.resume() if resume else 0
    if first_step >= recipe.steps:
        raise ValueError(
            f"steps must be above {first_step}, where the run stands; got {recipe.steps}"
        )
    assert isinstance(train_set, Sized)
    loader = DataLoader(
        train_set,
        batch_sampler=StepBatches(
            len(train_set), recipe.batch_size, recipe.seed, first_step, recipe.steps
        ),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=trainer.device.type == "cuda" and num_workers > 0,
    )
    step = first_step
    with TrainingProgress(first_step, recipe.steps, recipe.batch_size) as progress:
        try:
            for batch in loader:
                trainer.step(step, batch.to(trainer.device, non_blocking=True))
                step += 1
                if step % recipe.log_every == 0 or step == recipe.steps:
                    progress.report(step, trainer.log(step))
                progress.advance()
                if step % recipe.validate_every == 0 or step == recipe.steps:
                    progress.report_validation(step, trainer.validate(step))
        except KeyboardInterrupt:
            if step > first_step:
                trainer.save(step, best=False)
            raise
    return find_checkpoint(run, "last")


class _Trainer:
    """One run: model, optimiser, schedules, files."""

    def __init__(
        self, model: SLATE, recipe: Recipe, validation_set: Dataset[Tensor], run: Path
    ) -> None:
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
        """Takes up the last checkpoint of the run; returns its step."""
        folder = find_checkpoint(self.run, "last")
        step, self.plateau = restore_checkpoint(folder, self.model, self.optimizer)
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
        """Validates, draws a picture, writes a checkpoint; returns the losses."""
        start = time.perf_counter()
        seed = derive_seed(self.recipe.seed, "validation")
        row = validate(self.model, self.validation_batches, self.recipe.tau(step - 1), seed)
        best = self.plateau.update(row["loss"], self.recipe.patience)
        row["lr_factor"] = self.plateau.factor
        self._write(step, "validation", row)
        picture = torch.cat(self.validation_batches)[: self.recipe.picture_images]
        draw_panels(self.model, picture, self.run / "samples" / f"step-{step:09d}.png", seed)
        self.save(step, best=best)
        self.interval_start += time.perf_counter() - start
        return row

    def save(self, step: int, *, best: bool) -> None:
        """Writes a checkpoint."""
        keep = self.recipe.keep_checkpoints
        save_checkpoint(
            self.run, step, self.model, self.optimizer, self.plateau, best=best, keep=keep
        )

    def _batches(self, dataset: Dataset[Tensor]) -> list[Tensor]:
        assert isinstance(dataset, Sized)
        indices = range(min(len(dataset), self.recipe.validation_images))
        loader = DataLoader(
            torch.utils.data.Subset(dataset, indices), batch_size=self.recipe.batch_size
        )
        return [batch.to(self.device) for batch in loader]

    def _write(self, step: int, kind: str, row: dict[str, Any]) -> None:
        with (self.run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
