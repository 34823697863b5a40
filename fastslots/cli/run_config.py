"""The settings that a run folder keeps in ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslots.data.source import DataSource
from fastslots.slate import SLATEConfig
from fastslots.training.recipe import Recipe


def read_config(run: Path) -> dict[str, dict[str, Any]]:
    """The settings of a run, by group.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its config.json is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run: it has no config.json")
    try:
        config: dict[str, dict[str, Any]] = json.loads(path.read_text())
        groups = {name: dict(config[name]) for name in ("model", "recipe", "data")}
        SLATEConfig(**groups["model"]), Recipe(**groups["recipe"]), DataSource(**groups["data"])
        return groups
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def absolute_paths(data: dict[str, Any]) -> dict[str, Any]:
    """Paths that mean the same when the run is resumed from another folder; a cache "none" is None."""
    paths = dict(data)
    if paths.get("data", "scenes") != "scenes":
        paths["data"] = str(Path(paths["data"]).absolute())
    if paths.get("cache") is not None:
        none = paths["cache"].lower() in ("", "none")
        paths["cache"] = None if none else str(Path(paths["cache"]).absolute())
    return paths
