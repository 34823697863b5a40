"""Trains the CPU's SLATE with three seeds, and as it was trained before: about an hour of one CPU core.

    python benchmarks/slate_seeds.py

Writes benchmarks/results/slate-seeds.json, and what the first model makes of held-out scenes beside it; all
run folders lie in runs/slate-seeds/, where trainings that were interrupted go on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fastslots.demo.pictures import draw_objects
from fastslots.environment import describe_environment
from fastslots.shipped.make import train
from fastslots.shipped.models import ShippedModel
from fastslots.shipped.record import ShippedResults

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "slate-seeds"
RESULTS = ROOT / "benchmarks" / "results"
NOW = ("--model", "slate", "--settings", "cpu")
BEFORE = (
    *("--image-size", "32", "--num-slots", "6", "--no-whiten", "--draw-tokens"),
    *("--position-init", "normal", "--init-gradient", "none", "--num-scenes", "2000"),
    *("--steps", "2400", "--dvae-steps", "0", "--muon", "0", "--warmup-steps", "200"),
    *("--decay", "none", "--patience", "4", "--tau-steps", "1200"),
    *("--validate-every", "800", "--precision", "float32"),
)
CASES = {"before": (*NOW, *BEFORE), "now": NOW}
SEEDS = range(3)


def main() -> None:
    """Trains, measures, and writes the files."""
    rows = []
    for case, flags in CASES.items():
        for seed in SEEDS:
            model = ShippedModel(case, (*flags, "--seed", str(seed)), num_iterations=3)
            trained = train(model, RUNS / f"{case}-{seed}", print)
            command = dataclasses.replace(model, flags=flags).command
            rows.append(dataclasses.replace(trained.measure(trained.load()), command=command))
            if (case, seed) == ("now", SEEDS[0]):
                draw_objects(trained.load(), trained.scenes, RESULTS / "slate-demo.png")
    results = ShippedResults(describe_environment(torch.device("cpu")), rows)
    results.save(RESULTS / "slate-seeds.json")


if __name__ == "__main__":
    main()
