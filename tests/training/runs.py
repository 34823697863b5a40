"""Short runs, and what they wrote."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslots.models.recipe import Recipe
from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.training import train
from tests.training.tiny import Images, tiny_model

CHANGING = {"time", "images_per_second", "memory_mib"}  # from one run of the same steps to the next


def run(folder: Path, recipe: Recipe, *, resume: bool = False, images: int = 10) -> SLATE:
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    train(TrainableSLATE(model), recipe, Images(images), Images(6, seed=1), folder, resume=resume)
    return model


def rows(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run without what changes from one to the next."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in row.items() if name not in CHANGING}
        for row in lines
        if kind in (None, row["kind"])
    ]


def same_weights(one: SLATE, other: SLATE) -> bool:
    others = other.state_dict()
    return all(torch.equal(others[name], value) for name, value in one.state_dict().items())


def signal_at(
    call: int, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, number: int = signal.SIGINT
) -> None:
    """Sends a signal during the given call (from 1) of a function."""
    original, calls = getattr(target, name), iter(range(1, 1_000))

    def signalled(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if next(calls) == call:
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(target, name, signalled)
