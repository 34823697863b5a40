"""Going on from a checkpoint, if it is whole."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslots._extras import require
from fastslots.models.pretrained import PretrainedModel
from fastslots.training.checkpoints import RunState, checkpoints_of, optimizer_entries
from fastslots.training.optimizers import COUNT, Optimizers
from fastslots.training.plateau import Plateau


class DamagedError(ValueError):
    """A checkpoint of which a file is missing or corrupt; the message names it."""


def restore_last(run: Path, model: PretrainedModel, optimizers: Optimizers) -> RunState:
    """Takes up the last checkpoint of a run; without one, the run is at its beginning.

    Raises:
        ValueError: As `restore_checkpoint`; of a damaged one it says how to go on without it.
        OSError: If a file cannot be read.
    """
    steps = checkpoints_of(run)
    if not steps:
        return RunState()
    try:
        return restore_checkpoint(steps[-1], model, optimizers)
    except DamagedError as error:
        aside = shlex.join(["mv", str(steps[-1]), str(run / f"damaged-{steps[-1].name}")])
        earlier = (
            f"from {steps[-2].name}, the one before it," if steps[1:] else "from the first step"
        )
        raise DamagedError(f"{error}; to go on {earlier} put it aside: {aside}") from error


def restore_checkpoint(folder: Path, model: PretrainedModel, optimizers: Optimizers) -> RunState:
    """Loads weights and optimiser state into a model of the same configuration.

    Returns:
        Where the run stood.

    Raises:
        DamagedError: If a file of the checkpoint is missing or corrupt.
        ValueError: If the checkpoint is of another configuration.
        OSError: If a file cannot be read.
    """
    try:
        saved = type(model).from_pretrained(folder)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DamagedError(f"the checkpoint in {folder} is damaged: {error}") from error
    if saved.config != model.config:
        ours, theirs = asdict(model.config), asdict(saved.config)
        others = [f"{n} {theirs[n]} in place of {ours[n]}" for n in ours if theirs[n] != ours[n]]
        raise ValueError(
            f"the checkpoint in {folder} is of another configuration: it has {', '.join(others)}"
        )
    model.load_state_dict(saved.state_dict())
    safetensors = require("safetensors.torch", "train")
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(folder / "optimizer.safetensors")
        for name, key, kept, parameter in optimizer_entries(model, optimizers):
            # The count of steps keeps its own dtype, whatever the run's precision has become.
            dtype = None if key == COUNT else parameter.dtype
            kept[key] = tensors[name].to(parameter.device, dtype)
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        return RunState(**state | {"plateau": Plateau(**state["plateau"])})
    except Exception as error:  # safetensors' own error derives from Exception alone
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise DamagedError(f"the checkpoint in {folder} is damaged: {error!r}") from error
