"""Trains, measures and draws a model that is shipped, and puts it in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fastslots._extras import require
from fastslots.cli.run_config import read_config
from fastslots.data.scenes import Scenes
from fastslots.data.source import DataSource
from fastslots.demo.pictures import draw_objects
from fastslots.demo.processes import run_together
from fastslots.environment import describe_environment
from fastslots.evaluation import evaluate
from fastslots.models.pretrained import SHIPPED, PretrainedModel
from fastslots.models.registry import load_model
from fastslots.shipped.models import ShippedModel
from fastslots.shipped.plot import plot_training
from fastslots.shipped.record import LOSSES, METRICS, ShippedResults, ShippedRow
from fastslots.training.checkpoints import find_checkpoint, last_step

HELD_OUT = 1_000
"""Scenes that are measured."""


def make(
    model: ShippedModel, run: Path, results: Path, say: Callable[[str], None], to: Path = SHIPPED
) -> ShippedResults:
    """Trains a model, or goes on with it or takes it as it is, and writes all that is shipped of it.

    `to` gets the model in a folder of its name; `results` ``NAME.json``, ``NAME.png`` and
    ``NAME-curve.png``.

    Args:
        model: Which.
        run: Its run folder.
        results: Folder of the figures.
        say: Called with what is being done.
        to: Folder of all models.

    Raises:
        RuntimeError: If the training fails.
        ImportError: If something is not installed.
        OSError: If a file cannot be written.
    """
    require("matplotlib", "benchmark")  # before the hours, not after
    begun = (run / "config.json").is_file()
    if not begun or last_step(run) != read_config(run)["recipe"]["steps"]:
        run_together({model.name: model.train_command(run, resume=begun)}, say)
    say(f"measuring {model.name} on held-out scenes")
    checkpoint, config = find_checkpoint(run, "last"), read_config(run)
    counts = (config["model"]["num_iterations"], model.num_iterations)
    models = [load_model(checkpoint, num_iterations=count) for count in counts]
    scenes = DataSource(**config["data"]).open(
        "test", models[0].config.image_size, torch.device("cpu")
    )
    assert isinstance(scenes, Scenes)
    rows = [_row(model, run, config, measured, scenes) for measured in models]
    found = ShippedResults(describe_environment(torch.device("cpu")), rows)
    models[-1].save_pretrained(to / model.name)
    found.save(results / f"{model.name}.json")
    draw_objects(models[-1], scenes, results / f"{model.name}.png")
    plot_training(found, results / f"{model.name}-curve.png")
    return found


def _row(
    shipped: ShippedModel,
    run: Path,
    config: dict[str, Any],
    model: PretrainedModel,
    scenes: Scenes,
) -> ShippedRow:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (datetime.fromisoformat(lines[at]["time"]) for at in (0, -1))
    num_images = min(HELD_OUT, len(scenes))
    means = evaluate(model, scenes, num_images=num_images).means
    return ShippedRow(
        shipped.name,
        model.kind,
        sum(p.numel() for p in model.parameters()),
        shipped.command,
        config | {"data": config["data"] | {"cache": None}},  # which is a folder of the machine's
        model.config.num_iterations,
        (last - first).total_seconds() / 3600,
        [[line["step"], line[LOSSES[model.kind]]] for line in lines if line["kind"] == "train"],
        num_images,
        {name: list(mean[:2]) for name in METRICS if (mean := means.get(name))},
    )
