"""SLATE models on disk: ``config.json`` and ``model.safetensors``, never pickle."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from fastslots._extras import require
from fastslots.files import write_together
from fastslots.models.slate.config import SLATEConfig
from fastslots.models.state_dicts import plain_entries

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ADVICE = (
    f": {CONFIG_FILE} and {WEIGHTS_FILE} must be of one model, as save_pretrained writes them; "
    "weights of the public SLATE code load with SLATE.from_official"
)
"""What to do about tensors that do not fit."""


def save(folder: str | os.PathLike[str], config: SLATEConfig, state: Mapping[str, Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into ``folder``, which is made if missing.

    Both files are complete and on disk before either takes its name, so an interrupt or a full disk
    leaves what was there before.

    Raises:
        ValueError: If a tensor is on the meta device.
        OSError: If the folder or a file cannot be written.
        ImportError: If safetensors is not installed.
    """
    safetensors_torch = require("safetensors.torch", "train")
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(
                f"a model must have values to be saved; got {name} on the meta device: "
                "move it with to_empty(device=...) and load or draw its weights first"
            )
    # Copies, since parameters may share memory, which safetensors refuses.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    weights: bytes = safetensors_torch.save(tensors, metadata={"format": "pt"})
    settings = json.dumps(asdict(config), indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_together(
        {
            folder / WEIGHTS_FILE: lambda partial: partial.write_bytes(weights),
            folder / CONFIG_FILE: lambda partial: partial.write_text(settings),
        }
    )


def load(folder: str | os.PathLike[str]) -> tuple[SLATEConfig, dict[str, Tensor]]:
    """Reads what ``save`` wrote.

    Returns:
        The settings and the tensors, on the CPU; `state_dicts.fill` checks the tensors' names and shapes.

    Raises:
        FileNotFoundError: If the folder or one of its two files is missing.
        NotADirectoryError: If it is a file.
        ValueError: If a file is corrupt or a setting missing, unknown or out of range.
        ImportError: If safetensors is not installed.
    """
    safetensors = require("safetensors", "train")
    safetensors_torch = require("safetensors.torch", "train")
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(
            f"folder must be what save_pretrained wrote; got the file {str(folder)!r}: pass its folder"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r} to read a model from")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder {str(folder)!r} holds no {name}{_models_in(folder)}")
    config = _read_config(folder / CONFIG_FILE)
    try:
        tensors: dict[str, Tensor] = safetensors_torch.load_file(folder / WEIGHTS_FILE)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} is no valid safetensors file: {error}"
        ) from error
    return config, plain_entries(tensors)


def _models_in(folder: Path) -> str:
    """Which folder may have been meant: a run's models are in its ``checkpoints``."""
    found = [
        path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{WEIGHTS_FILE}")
    ]
    models = sorted(path for path in found if not path.name.startswith("."))
    if not models:
        return ""
    return f", but {len(models)} of its folders do: pass one, such as {str(models[-1])!r}"


def _read_config(path: Path) -> SLATEConfig:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding or of the JSON
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(settings).__name__}")
    known = {field.name for field in fields(SLATEConfig)}
    if settings.keys() != known:
        raise ValueError(
            f"{path} must hold the settings of SLATEConfig: unknown {sorted(settings.keys() - known)}, "
            f"missing {sorted(known - settings.keys())}"
        )
    try:
        return SLATEConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
