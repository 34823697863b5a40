"""Models that are built from settings, on disk: ``config.json`` and ``model.safetensors``, never pickle."""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fastslots._extras import require
from fastslots.files import write_together
from fastslots.models import state_dicts

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHIPPED = Path(__file__).parents[1] / "pretrained"
"""The models that come with the package, each in a folder of its name."""
_KIND, _FIRST_KIND = "kind", "SLATE"  # the only one when models were saved without it


class PretrainedModel(nn.Module):
    """A model that its settings describe in full but for its weights.

    Args:
        config: The settings, a `config_class`.

    Attributes:
        kind: What ``config.json`` calls such a model.
        config_class: A frozen dataclass that checks itself.
        load_advice: What else to try with tensors that do not fit, ends the message.

    Raises:
        TypeError: If ``config`` is of another class.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[Any]]
    load_advice: ClassVar[str] = ""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            wanted = self.config_class.__name__
            raise TypeError(f"config must be a {wanted}; got {type(config).__name__}")
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into ``folder``, which is made if missing.

        Both files are complete and on disk before either takes its name, so an interrupt or a full disk
        leaves what was there before. Parameters that share memory are written, and come back, each by itself.

        Raises:
            ValueError: If a tensor is on the meta device.
            OSError: If the folder or a file cannot be written.
            ImportError: If safetensors is not installed.
        """
        safetensors_torch = require("safetensors.torch", "train")
        state = self.state_dict()
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
        settings = json.dumps({_KIND: self.kind, **asdict(self.config)}, indent=2) + "\n"
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_together(
            {
                folder / WEIGHTS_FILE: lambda partial: partial.write_bytes(weights),
                folder / CONFIG_FILE: lambda partial: partial.write_text(settings),
            }
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **settings: Any) -> Self:
        """Reads what ``save_pretrained`` wrote, in eval mode, on PyTorch's default device: usually the CPU.

        Args:
            folder: The folder, or the name of a model that comes with the package (`SHIPPED`); a folder
                of that name here, with a ``config.json``, goes before it.
            **settings: In place of the saved ones, such as ``num_iterations=7`` or ``backend="reference"``;
                the weights must fit them.

        The model has the saved dtype. Were there several, it has the one that holds all values exactly, with
        a warning. Names may have prefixes of ``torch.compile``, DDP or a model around it.

        Raises:
            FileNotFoundError: If the folder or one of its two files is missing.
            NotADirectoryError: If it is a file.
            ValueError: If a file is corrupt or of another kind of model, a setting missing, unknown or
                against its rule, a tensor missing, misshaped or of a dtype that no model runs in, or the
                default device is the meta device.
            TypeError: If a setting that is given has the wrong type.
            ImportError: If safetensors is not installed.
        """
        safetensors = require("safetensors", "train")
        safetensors_torch = require("safetensors.torch", "train")
        folder = find_model(folder)
        kind, saved = _read_settings(folder / CONFIG_FILE)
        if kind != cls.kind:
            raise ValueError(
                f"folder {str(folder)!r} holds a model of kind {kind!r}; got it read as {cls.kind!r}: "
                f"read it with {kind}.from_pretrained"
            )
        own_config = _make_config(folder / CONFIG_FILE, cls.config_class, saved)
        config = cls._changed(own_config, settings) if settings else own_config
        weights = folder / WEIGHTS_FILE
        try:
            tensors: dict[str, Tensor] = safetensors_torch.load_file(weights)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{weights} is no valid safetensors file: {error}") from error
        model = cls(config)
        landmark, _ = next(model.named_parameters())
        entries = state_dicts.plain_entries(tensors, landmark)
        if settings:
            own = ", ".join(f"{name}={getattr(own_config, name)!r}" for name in settings)
            advice = f": the settings given must fit the weights, which were saved with {own}"
        else:
            advice = (
                f": {CONFIG_FILE} and {WEIGHTS_FILE} must be of one model, as save_pretrained writes them"
                + cls.load_advice
            )
        state_dicts.fill(model, entries, str(weights), advice)
        return model.eval()

    @classmethod
    def check_change(cls, saved: Any, changed: Any) -> None:
        """Called where settings are others than the saved ones: raises ValueError if no weights fit both.

        Whatever shapes of tensors tell is found without it.

        Args:
            saved: The settings, a `config_class`.
            changed: Those in their place.
        """

    @classmethod
    def _changed(cls, config: Any, settings: dict[str, Any]) -> Any:
        unknown = [name for name in settings if name not in asdict(config)]
        if unknown:
            raise ValueError(
                f"settings must be of {type(config).__name__}; got {', '.join(unknown)}, which is none of "
                f"{', '.join(asdict(config))}"
            )
        changed = replace(config, **settings)
        cls.check_change(config, changed)
        return changed


def find_model(folder: str | os.PathLike[str]) -> Path:
    """The folder of a saved model, or of one that comes with the package, by its name.

    Raises:
        FileNotFoundError: If the folder or one of its two files is missing.
        NotADirectoryError: If it is a file.
    """
    name, folder = os.fspath(folder), Path(folder)
    if name in shipped_models() and not (folder / CONFIG_FILE).is_file():
        return SHIPPED / name
    if folder.is_file():
        raise NotADirectoryError(
            f"folder must be what save_pretrained wrote; got the file {str(folder)!r}: pass its folder"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r} to read a model from; the package brings "
            f"{', '.join(map(repr, shipped_models())) or 'none'}"
        )
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"folder {str(folder)!r} holds no {file}{_models_in(folder)}")
    return folder


def shipped_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{WEIGHTS_FILE}"))


def kind_of(folder: Path) -> str:
    """What kind of model a folder holds, as its ``config.json`` says.

    Raises:
        ValueError: If the file is damaged.
        OSError: If it cannot be read.
    """
    return _read_settings(folder / CONFIG_FILE)[0]


def _models_in(folder: Path) -> str:
    """Which folder may have been meant: a run's models are in its ``checkpoints``."""
    found = [
        path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{WEIGHTS_FILE}")
    ]
    models = sorted(path for path in found if not path.name.startswith("."))
    if not models:
        return ""
    return f", but {len(models)} of its folders do: pass one, such as {str(models[-1])!r}"


def _read_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The kind of a model, and its settings."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding or of the JSON
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(settings).__name__}")
    return settings.pop(_KIND, _FIRST_KIND), settings


def _make_config(path: Path, config_class: type[Any], settings: dict[str, Any]) -> Any:
    settings = {**getattr(config_class, "since", {}), **settings}
    known = {field.name for field in fields(config_class)}
    if settings.keys() != known:
        raise ValueError(
            f"{path} must hold the settings of {config_class.__name__}: "
            f"unknown {sorted(settings.keys() - known)}, missing {sorted(known - settings.keys())}"
        )
    try:
        return config_class(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
