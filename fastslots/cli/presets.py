"""What ``fastslots train`` starts from: the settings for a device, and switches that stand for numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import typer

from fastslots.models.slate.recipe import CPU_SETTINGS
from fastslots_kernels.checks import check_choice

# What each switch sets, and its value.
SWITCHES: dict[str, tuple[str, float]] = {
    "--no-clip": ("clip", math.inf),
    "--no-warmup": ("warmup_steps", 0),
    "--no-decay": ("patience", 0),
}


def preset(settings: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """What differs from the defaults, by group.

    Args:
        settings: ``"cpu"``, ``"gpu"`` or ``"auto"``, by the device.
        device: That is trained on.

    Raises:
        ValueError: If `settings` is none of these.
    """
    check_choice("settings", settings, ("auto", "cpu", "gpu"))
    if settings == "cpu" or (settings == "auto" and device.type == "cpu"):
        return CPU_SETTINGS
    return {"model": {}, "recipe": {}, "data": {}}


def switch(flag: str, text: str) -> Any:
    """A flag that is one of `SWITCHES`."""
    return typer.Option(flag, help=text, rich_help_panel="Recipe")


def switched(switches: Mapping[str, bool], given: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that switches stand for.

    Args:
        switches: Those of a command, and whether each was given.
        given: The numbers that were given by themselves.

    Raises:
        ValueError: If a number was given in both ways.
    """
    numbers = {}
    for flag, is_given in switches.items():
        name, value = SWITCHES[flag]
        if is_given:
            if name in given:
                own = f"--{name.replace('_', '-')}"
                raise ValueError(f"{own} and {flag} exclude each other; got {own} {given[name]}")
            numbers[name] = value
    return numbers
