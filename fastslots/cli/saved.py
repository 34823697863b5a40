"""Models that commands are given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastslots.cli.paths import utf8_path
from fastslots.models.pretrained import PretrainedModel, find_model, shipped_models
from fastslots.models.registry import load_model
from fastslots.training.checkpoints import find_checkpoint

HELP = (
    "A run folder (its best checkpoint), a checkpoint's folder, or the name of a model that comes "
    "with the package."
)
Model = Annotated[Path, typer.Option(parser=utf8_path, metavar="RUN|CHECKPOINT|NAME", help=HELP)]
DEFAULT_MODEL = Path("scenes")
"""That comes with the package."""


def find_saved(model: Path) -> Path:
    """The folder of a model: a run's best checkpoint, the folder itself, or what comes with the package.

    Raises:
        FileNotFoundError: If there is none.
    """
    try:
        return find_checkpoint(model)
    except FileNotFoundError as error:
        names = shipped_models()
        if str(model) in names:
            return find_model(model)
        brought = ", ".join(map(repr, names)) or "none"
        raise FileNotFoundError(
            f"{error}, or the name of a model that the package brings, which are {brought}"
        ) from error


def load_saved(folder: Path, device: torch.device, **settings: Any) -> PretrainedModel:
    """Reads a model of whatever kind, as `load_model`."""
    # What learns, and what is frozen, is no news to who looks at a trained model.
    logging.getLogger("fastslots").setLevel(logging.ERROR)
    return load_model(folder, **settings).to(device)
