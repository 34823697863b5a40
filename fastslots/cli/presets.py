"""What ``fastslots train`` starts from: the settings for a device, and switches that stand for numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import typer

from fastslots.models.recipe import Recipe
from fastslots.models.registry import MODELS
from fastslots_kernels.checks import check_choice


def preset(model: str, settings: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """What differs from the defaults, by group.

    Args:
        model: One of `MODELS`.
        settings: ``"cpu"``, ``"gpu"`` or ``"auto"``, by the device.
        device: That is trained on.

    Raises:
        ValueError: If `settings` is none of these.
    """
    check_choice("settings", settings, ("auto", "cpu", "gpu"))
    if settings == "cpu" or (settings == "auto" and device.type == "cpu"):
        return {group: dict(numbers) for group, numbers in MODELS[model].cpu_settings.items()}
    return {"model": {}, "recipe": {}, "data": {}}


def switch(flag: str, text: str) -> Any:
    """A flag that stands for a number; see `switched`."""
    return typer.Option(flag, help=text, rich_help_panel="Recipe")


def switched(
    switches: Mapping[str, bool], given: Mapping[str, Any], recipe: type[Recipe]
) -> dict[str, Any]:
    """The numbers that switches stand for.

    Args:
        switches: Those of a command, and whether each was given.
        given: The numbers that were given by themselves.
        recipe: That has them.

    Raises:
        ValueError: If a number was given in both ways.
    """
    meanings: dict[str, Mapping[str, Any]] = {
        "--no-clip": {"clip": math.inf},
        "--no-warmup": {"warmup_steps": 0},
        "--no-decay": recipe.no_decay,
    }
    numbers: dict[str, Any] = {}
    for flag in (flag for flag, is_given in switches.items() if is_given):
        for name, value in meanings[flag].items():
            if name in given:
                own = f"--{name.replace('_', '-')}"
                raise ValueError(f"{own} and {flag} exclude each other; got {own} {given[name]}")
            numbers[name] = value
    return numbers
