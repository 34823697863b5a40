"""The settings that a run folder keeps in ``config.json``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastslots.cli.flags import listed
from fastslots.data.source import DataSource
from fastslots.models.registry import MODELS
from fastslots.training.checkpoints import is_model, last_step, step_name
from fastslots.training.loop import resume_command

_FIRST = next(iter(MODELS))


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run: ``"model"``, ``"recipe"`` and ``"data"``, and the ``"kind"`` of its model.

    None may be missing: the default is hardly what the run began with. But a run without a kind is of the
    only model that there was once, and numbers that recipes have got since are what they stood for then.

    Raises:
        FileNotFoundError: If the folder holds no run, with the run if it is a part of one.
        ValueError: If its config.json is damaged, or a setting missing, unknown, or against its rule.
    """
    path = run / "config.json"
    if not path.is_file() or is_model(run):
        raise FileNotFoundError(_why_no_run(run))
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_named_once)
    except ValueError as error:  # of the encoding, the JSON or its names
        raise ValueError(f"{path} is damaged: {error}") from error
    if isinstance(config, dict):
        config = _completed(config)
    groups = ("model", "recipe", "data")
    _check_names(str(path), config, {"kind": repr(_FIRST), **dict.fromkeys(groups, "an object")})
    if config["kind"] not in MODELS:
        raise ValueError(
            f"{path}: kind must be {listed(map(repr, MODELS))}; got {config['kind']!r}"
        )
    kind = MODELS[config["kind"]]
    classes: tuple[type[Any], ...] = (kind.config, kind.recipe, DataSource)
    for group, cls in zip(groups, classes, strict=True):
        usual = {field.name: json.dumps(field.default) for field in fields(cls)}
        _check_names(f"{path}, {group}", config[group], usual)
        try:
            cls(**config[group])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, {group}: {error}") from error
    return dict(config)


def absolute_paths(data: dict[str, Any]) -> dict[str, Any]:
    """Paths that mean the same when the run is resumed from another folder; a cache "none" is None."""
    paths = dict(data)
    if paths.get("data") == "":  # which would mean the current folder
        raise ValueError("data must be 'scenes' or a folder of images; got ''")
    if paths.get("data", "scenes") != "scenes":
        paths["data"] = str(Path(paths["data"]).absolute())
    if paths.get("cache") is not None:
        none = paths["cache"].lower() in ("", "none")
        paths["cache"] = None if none else str(Path(paths["cache"]).absolute())
    return paths


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, as this one would have."""
    config = {"kind": _FIRST, **config}
    if kind := MODELS.get(str(config["kind"])):
        for group, cls in (("model", kind.config), ("recipe", kind.recipe)):
            if isinstance(config.get(group), dict):
                config[group] = {**cls.since, **config[group]}
    return config


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that JSON means; Python would take the last of two values of a name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"{next(n for n in names if names.count(n) > 1)!r} must stand in it once; got it twice"
        )
    return found


def _check_names(where: str, found: object, usual: dict[str, str]) -> None:
    """Raises if what was found is no object with certain names; it says their usual values."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} must be an object; got {found!r}")
    unknown = [name for name in found if name not in usual]
    if unknown:
        raise ValueError(
            f"{where} must hold no other settings; got {', '.join(unknown)}: remove or rename it"
        )
    missing = [f"{name} (usually {value})" for name, value in usual.items() if name not in found]
    if missing:
        raise ValueError(
            f"{where} must hold all settings; got none called {', '.join(missing)}: "
            "add what the run began with"
        )


def _why_no_run(folder: Path) -> str:
    """Says so, and what to pass in place of a run's checkpoints, or of one of them."""
    place = folder.absolute()
    checkpoints = place.parent if is_model(place) else place
    run = checkpoints.parent
    if checkpoints.name != "checkpoints" or not (run / "config.json").is_file():
        kind = "is a model, not the folder of a run" if is_model(place) else "has no config.json"
        kind = "is a file" if place.is_file() else kind
        return f"{folder} holds no run: it {kind}"
    step = last_step(run)
    advice = f"{resume_command(run)} goes on from its last checkpoint, of step {step}"
    if place != checkpoints and place.name != step_name(step):
        advice += f"; to go on from {place.name}, first move the later ones out of {checkpoints}"
    return f"a run is resumed by its own folder; got {folder}, which lies in one: {advice}"
