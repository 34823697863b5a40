"""Checkpoints that are whole or not there.

A run keeps its checkpoints in ``checkpoints/step-000001000/``: what `SLATE.save_pretrained` writes, the
optimiser's state as safetensors and the schedules' as JSON. Each is written to a hidden folder beside its
place and renamed, so that a crash, a full disk or an interrupt leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastslots._extras import require
from fastslots.slate import SLATE
from fastslots.training.recipe import Plateau

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    run: Path,
    step: int,
    model: SLATE,
    optimizer: torch.optim.Adam,
    plateau: Plateau,
    *,
    best: bool,
    keep: int,
) -> Path:
    """Writes a checkpoint, then removes all but the last `keep` and the best.

    Raises:
        OSError: If it cannot be written; earlier checkpoints are untouched.
    """
    folder = run / "checkpoints"
    final = folder / f"step-{step:09d}"
    partial = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        safetensors = require("safetensors.torch", "train")
        safetensors.save_file(
            _optimizer_tensors(model, optimizer), partial / "optimizer.safetensors"
        )
        state = {"step": step, "plateau": asdict(plateau)}
        (partial / "state.json").write_text(json.dumps(state, indent=2))
        for path in partial.iterdir():
            _sync(path)
        if final.exists():  # a step done again: never without one of the two
            replaced = folder / f".{final.name}.replaced"
            final.rename(replaced)
            partial.rename(final)
            shutil.rmtree(replaced)
        else:
            partial.rename(final)
        if best:
            write_atomically(folder / "best.json", json.dumps({"step": step}))
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}; "
            "earlier checkpoints are as they were"
        ) from error
    _prune(folder, keep)
    return final


def restore_checkpoint(
    folder: Path, model: SLATE, optimizer: torch.optim.Adam
) -> tuple[int, Plateau]:
    """Loads weights and optimiser state into a model of the same configuration.

    Returns:
        The step and the plateau state the checkpoint was taken at.

    Raises:
        FileNotFoundError: If a file of the checkpoint is missing.
        ValueError: If the checkpoint is of another configuration or corrupt.
    """
    saved = SLATE.from_pretrained(folder)
    if saved.config != model.config:
        raise ValueError(
            f"the checkpoint in {folder} is of another configuration: {saved.config}; "
            f"this run has {model.config}"
        )
    model.load_state_dict(saved.state_dict())
    safetensors = require("safetensors.torch", "train")
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(folder / "optimizer.safetensors")
        for name, parameter in _trained(model):
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"].to(parameter.device) for key in _ADAM_STATE
            }
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        return int(state["step"]), Plateau(**state["plateau"])
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise ValueError(f"the checkpoint in {folder} is damaged: {error!r}") from error


def has_checkpoint(run: Path) -> bool:
    """Whether a run has written a checkpoint yet."""
    return any((run / "checkpoints").glob("step-*"))


def find_checkpoint(folder: Path | str, which: str = "best") -> Path:
    """The checkpoint that a folder stands for: a run, its ``checkpoints``, or a checkpoint itself.

    Args:
        folder: Any of these.
        which: ``"best"`` (by validation loss; the last if none is marked) or ``"last"``.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return folder
    inner = folder / "checkpoints"
    inner = inner if inner.is_dir() else folder
    steps = sorted(inner.glob("step-*"))
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: expected a run folder, or a folder with "
            "config.json and model.safetensors"
        )
    best = _best(inner)
    return best if which == "best" and best is not None else steps[-1]


def _best(folder: Path) -> Path | None:
    """The checkpoint marked as the best, if it is there and the mark can be read."""
    try:
        step = json.loads((folder / "best.json").read_text())["step"]
        found = folder / f"step-{step:09d}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if found.is_dir() else None


def _prune(folder: Path, keep: int) -> None:
    best = _best(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old != best:
            shutil.rmtree(old)


def _optimizer_tensors(model: SLATE, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in _trained(model)
        for key in _ADAM_STATE
    }


def _trained(model: SLATE) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    _sync(partial)
    os.replace(partial, path)


def _sync(path: Path) -> None:
    """Makes sure that a file is on the disk before a rename makes it count."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
