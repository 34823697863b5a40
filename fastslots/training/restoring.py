"""Going on from a checkpoint, if it is whole."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fastslots._extras import require
from fastslots.models.pretrained import PretrainedModel, kind_of
from fastslots.training.checkpoints import RunState, checkpoints_of, optimizer_entries
from fastslots.training.optimizers import COUNT, MUON_SUM, Optimizers
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
    """Loads weights and the optimisers' state into a model of the same configuration.

    Returns:
        Where the run stood.

    Raises:
        DamagedError: If a file of the checkpoint is missing or corrupt.
        ValueError: If the checkpoint is of another kind or configuration, or one of the two runs has Muon and
            the other has not.
        OSError: If a file cannot be read.
    """
    try:
        kind = kind_of(folder)
        if kind == model.kind:
            saved = type(model).from_pretrained(folder)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DamagedError(f"the checkpoint in {folder} is damaged: {error}") from error
    if kind != model.kind:
        raise ValueError(f"the checkpoint in {folder} must be of a {model.kind}; got a {kind}")
    if saved.config != model.config:
        ours, theirs = asdict(model.config), asdict(saved.config)
        others = [f"{n} {theirs[n]} in place of {ours[n]}" for n in ours if theirs[n] != ours[n]]
        raise ValueError(
            f"the checkpoint in {folder} is of another configuration: it has {', '.join(others)}"
        )
    safetensors = require("safetensors.torch", "train")
    with _damage_is_named(folder):
        tensors: dict[str, Tensor] = safetensors.load_file(folder / "optimizer.safetensors")
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    _check_muon(folder, tensors, optimizers)
    model.load_state_dict(saved.state_dict())
    with _damage_is_named(folder):
        for name, key, kept, parameter in optimizer_entries(model, optimizers):
            # The count of steps keeps its own dtype, whatever the run's precision has become.
            dtype = None if key == COUNT else parameter.dtype
            kept[key] = tensors[name].to(parameter.device, dtype)
        return RunState(**state | {"plateau": Plateau(**state["plateau"])})


def _check_muon(folder: Path, tensors: Mapping[str, Tensor], optimizers: Optimizers) -> None:
    """Raises unless Muon took matrices in the run of a checkpoint if it does now: Adam keeps other sums."""
    had = any(name.startswith(f"{MUON_SUM}.") for name in tensors)
    if had != any(key == MUON_SUM for _, key, _ in optimizers.entries()):
        raise ValueError(
            f"the checkpoint in {folder} is of a run {'with' if had else 'without'} Muon: muon must be "
            f"{'above 0' if had else '0'} to go on from it; got {optimizers.muon:g}"
        )


@contextmanager
def _damage_is_named(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with a file that is there is damage."""
    try:
        yield
    except Exception as error:  # safetensors' own error derives from Exception alone
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise DamagedError(f"the checkpoint in {folder} is damaged: {error!r}") from error
