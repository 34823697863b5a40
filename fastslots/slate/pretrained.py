"""SLATE models on disk: ``config.json`` and ``model.safetensors``, never pickle."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from torch import Tensor, nn

from fastslots._extras import require
from fastslots.slate.config import SLATEConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save(folder: str | os.PathLike[str], config: SLATEConfig, state: Mapping[str, Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into ``folder``, which is made if missing.

    Both files are complete and on disk before either takes its name, so an interrupt or a full disk
    leaves what was there before.

    Raises:
        OSError: If the folder or a file cannot be written.
        ImportError: If safetensors is not installed.
    """
    safetensors_torch = require("safetensors.torch", "train")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights: bytes = safetensors_torch.save(tensors, metadata={"format": "pt"})
    settings = json.dumps(asdict(config), indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        _written_beside(folder / CONFIG_FILE, settings.encode()),
        _written_beside(folder / WEIGHTS_FILE, weights),
    ):
        pass


def load(folder: str | os.PathLike[str]) -> tuple[SLATEConfig, dict[str, Tensor]]:
    """Reads what ``save`` wrote.

    Returns:
        The settings and the tensors, on the CPU; ``fill`` checks the tensors' names and shapes.

    Raises:
        FileNotFoundError: If the folder or one of its two files is missing.
        ValueError: If a file is corrupt or a setting missing, unknown or out of range.
        ImportError: If safetensors is not installed.
    """
    safetensors = require("safetensors", "train")
    safetensors_torch = require("safetensors.torch", "train")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r} to read a model from")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder {str(folder)!r} holds no {name}")
    config = _read_config(folder / CONFIG_FILE)
    try:
        tensors: dict[str, Tensor] = safetensors_torch.load_file(folder / WEIGHTS_FILE)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} is no valid safetensors file: {error}"
        ) from error
    return config, tensors


def fill(
    model: nn.Module,
    entries: Mapping[str, Tensor],
    names: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Gives ``model`` the values, and the dtype, of ``entries``.

    Args:
        model: The model.
        entries: One tensor for every entry of the model's state dict.
        names: The entries' names by the model's names, where they differ.
        hint: Ends the message about misshaped entries.

    Raises:
        ValueError: If an entry is missing, unexpected or misshaped, naming all that are.
    """
    names = names or {}
    own = model.state_dict()
    shapes = {names.get(name, name): tensor.shape for name, tensor in own.items()}
    missing = [name for name in shapes if name not in entries]
    unexpected = [name for name in entries if name not in shapes]
    misshaped = [
        f"{name} {tuple(entries[name].shape)} in place of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in entries and entries[name].shape != shape
    ]
    problems = [
        *([f"misses {', '.join(missing)}"] if missing else []),
        *([f"holds the unexpected {', '.join(unexpected)}"] if unexpected else []),
        *([f"holds the misshaped {', '.join(misshaped)}{hint}"] if misshaped else []),
    ]
    if problems:
        raise ValueError(f"the state dict {'; '.join(problems)}")
    model.to(next(iter(entries.values())).dtype)
    model.load_state_dict({name: entries[names.get(name, name)] for name in own})


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


@contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[None]:
    """Writes ``content`` beside ``path`` on entry; on exit it takes the name ``path``."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
