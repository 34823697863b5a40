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
    trained = train(model, run, say)
    shipped = trained.load(num_iterations=model.num_iterations)
    rows = [trained.measure(each) for each in (trained.load(), shipped)]
    found = ShippedResults(describe_environment(torch.device("cpu")), rows)
    shipped.save_pretrained(to / model.name)
    found.save(results / f"{model.name}.json")
    draw_objects(shipped, trained.scenes, results / f"{model.name}.png")
    plot_training(found, results / f"{model.name}-curve.png")
    return found


def train(model: ShippedModel, run: Path, say: Callable[[str], None]) -> Trained:
    """Trains a model, or goes on with it, or takes it as it is if it has had its steps.

    Args:
        model: Which.
        run: Its run folder.
        say: Called with what is being done.

    Raises:
        RuntimeError: If the training fails.
    """
    begun = (run / "config.json").is_file()
    if not begun or last_step(run) != read_config(run)["recipe"]["steps"]:
        run_together({model.name: model.train_command(run, resume=begun)}, say)
    say(f"measuring {model.name} on held-out scenes")
    return Trained(model, run)


class Trained:
    """A training that is over.

    Args:
        model: Of what.
        run: Its run folder.

    Attributes:
        scenes: Held out.
    """

    def __init__(self, model: ShippedModel, run: Path) -> None:
        self.name, self.command = model.name, model.command
        self.run, self.config = run, read_config(run)
        size = self.config["model"]["image_size"]
        scenes = DataSource(**self.config["data"]).open("test", size, torch.device("cpu"))
        assert isinstance(scenes, Scenes)
        self.scenes = scenes

    def load(self, **settings: Any) -> PretrainedModel:
        """The model, with other settings where they are given."""
        return load_model(find_checkpoint(self.run, "last"), **settings)

    def measure(self, model: PretrainedModel) -> ShippedRow:
        """What is to be known of the training, and of its model on held-out scenes."""
        log = (self.run / "metrics.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in log]
        first, last = (datetime.fromisoformat(lines[at]["time"]) for at in (0, -1))
        num_images = min(HELD_OUT, len(self.scenes))
        means = evaluate(model, self.scenes, num_images=num_images).means
        loss = LOSSES[model.kind]
        # A cache is a folder of the machine's.
        config = self.config | {"data": self.config["data"] | {"cache": None}}
        return ShippedRow(
            self.name,
            model.kind,
            sum(p.numel() for p in model.parameters()),
            self.command,
            config,
            model.config.num_iterations,
            (last - first).total_seconds() / 3600,
            [[line["step"], line[loss]] for line in lines if line["kind"] == "train"],
            num_images,
            {name: list(mean[:2]) for name in METRICS if (mean := means.get(name))},
        )
