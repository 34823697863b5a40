"""Runs the demo with five seeds, one after the other: about twenty minutes on two CPU cores.

    python benchmarks/demo_seeds.py

Writes benchmarks/results/demo/seeds.json, and what the demo of seed 0 wrote beside it; all demos lie in
runs/demo-seeds/.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from fastslots.demo.record import DemoResults
from fastslots.demo.run import run_demo

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "demo-seeds"
RESULTS = ROOT / "benchmarks" / "results" / "demo"
SEEDS = range(5)


def main() -> None:
    """Trains, measures, and writes the files."""
    found = [run_demo(RUNS / str(seed), seed, print) for seed in SEEDS]
    arms = zip(*(results.rows for results in found), strict=True)
    rows = [
        dataclasses.replace(row, case=f"{row.case}, seed {seed}")
        for arm in arms
        for seed, row in zip(SEEDS, arm, strict=True)
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    DemoResults(found[0].environment, rows).save(RESULTS / "seeds.json")
    for name in ("demo.json", "objects.png", "beside.png", "curves.png"):
        shutil.copy(RUNS / str(SEEDS[0]) / name, RESULTS / name)


if __name__ == "__main__":
    main()
