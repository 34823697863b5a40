"""What a trainable must give, tried before the first step: a mistake must cost no steps."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass

import torch
from torch import nn

from fastslots.models.modes import eval_mode
from fastslots.models.recipe import Recipe
from fastslots.models.trainable import Trainable
from fastslots.training.validation import check_numbers, validate, validation_keys

RESERVED = ("step", "kind", "time", "lr_factor", "images_per_second", "memory_mib")


@torch.no_grad()
def rehearse(trainable: Trainable, recipe: Recipe) -> None:
    """Tries all that is due after the first steps on one gray image, and writes nothing.

    Args:
        trainable: On the device and in the dtype of the run.
        recipe: The numbers.

    Raises:
        TypeError: If the model's settings are no dataclass.
        ValueError: If a method does not give what it says, names clash, or settings are not those that would
            be read again, naming what is wrong.
    """
    model = trainable.model
    _check_config(model.config)
    schedule = recipe.schedule(0)
    of_groups = [f"{what}_{name}" for what in ("lr", recipe.norm_name) for name in recipe.rates(0)]
    names = [*trainable.losses, *trainable.looks, *schedule, *of_groups]
    _check_names("losses, looks, schedule and groups", names)
    image = torch.full((1, *model.config.image_shape), 0.5, dtype=model.dtype, device=model.device)
    row = dict.fromkeys(names, 0.0)
    if trainable.looks:
        with eval_mode(model):
            found = trainable.look(image, validation_keys(0, 1, recipe.seed).to(model.device))
        check_numbers("look", found, trainable.looks, torch.float64)
    _check_line("step_line", trainable.step_line, row)
    means = validate(trainable, [image], schedule, recipe.seed)
    _check_names("validation_means", means)
    _check_line("validation_line", trainable.validation_line, means)


def check_groups(groups: Mapping[str, list[nn.Parameter]], trainable: Trainable) -> None:
    """Raises ValueError unless every parameter that learns is in one group, and is the model's."""
    own = {id(p) for p in trainable.model.parameters()}
    foreign = [name for name, p in trainable.named_parameters() if id(p) not in own]
    if foreign:
        raise ValueError(
            f"a trainable must have no parameters but its model's, which is saved; got {', '.join(foreign)}"
        )
    missing = {id(p): name for name, p in trainable.model.named_parameters() if p.requires_grad}
    others = [p for group in groups.values() for p in group if missing.pop(id(p), None) is None]
    if others or missing:
        raise ValueError(
            "groups must hold every parameter that learns, once, and no other; too many are "
            f"{len(others)}, missing {', '.join(missing.values()) or 'none'}"
        )


def check_rates(rates: Mapping[str, float], groups: Iterable[str], step: int) -> None:
    """Raises ValueError unless every group has a learning rate that is finite and not negative."""
    if rates.keys() != set(groups):
        raise ValueError(f"recipe.rates must name the groups {list(groups)}; got {list(rates)}")
    wrong = [name for name, rate in rates.items() if not 0 <= rate < math.inf]
    if wrong:
        raise ValueError(
            f"recipe.rates must be finite and not below 0; got {wrong[0]} {rates[wrong[0]]} at step {step}"
        )


def check_gradients(model: nn.Module, resting: Iterable[nn.Parameter]) -> None:
    """Raises ValueError if a parameter that learns got no gradient, but for those that rest."""
    expected = {id(p) for p in model.parameters() if p.requires_grad} - {id(p) for p in resting}
    without = [n for n, p in model.named_parameters() if id(p) in expected and p.grad is None]
    if without:
        raise ValueError(
            f"every parameter that learns must get a gradient; got none for {', '.join(without)}: use it in "
            "a loss, or freeze it by requires_grad_(False)"
        )


def _check_config(config: object) -> None:
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"the model's config must be a dataclass; got {type(config).__name__}")
    read: object = type(config)(**json.loads(json.dumps(asdict(config))))
    if read != config:
        raise ValueError(
            f"the model's config must be the same after JSON, which has lists for tuples; got {config}"
        )


def _check_names(what: str, names: Iterable[str]) -> None:
    counts = Counter(list(names))
    clash = [name for name, count in counts.items() if count > 1 or name in RESERVED]
    if clash:
        raise ValueError(
            f"names of {what} must differ and be none of {RESERVED}; got {', '.join(clash)}: rename it"
        )


def _check_line(name: str, line: str, row: Mapping[str, float]) -> None:
    try:
        line.format(**row)
    except KeyError as error:
        raise ValueError(
            f"{name} must show what is there, {', '.join(row)}; got {error}"
        ) from error
