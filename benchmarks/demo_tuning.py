"""Tries learning rates and clippings for the demo's unrolled arm, two trainings at a time.

    python benchmarks/demo_tuning.py

Writes benchmarks/results/demo/tuning.json; the runs lie in runs/demo-tuning/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fastslots.demo.arms import UNROLLED, Arm, train_command
from fastslots.demo.processes import run_together
from fastslots.demo.run import measure, render_scenes

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "demo-tuning"
RESULTS = ROOT / "benchmarks" / "results" / "demo" / "tuning.json"
TRIED = [
    Arm(f"lr {rate:g}, clip {clip:g}", (*UNROLLED, "--lr-main", str(rate), "--clip", str(clip)))
    for rate in (1.5e-3, 7.5e-4, 3.75e-4)
    for clip in (1.0, 0.1)
]


def main() -> None:
    """Trains, measures, and writes the file."""
    shutil.rmtree(RUNS, ignore_errors=True)
    render_scenes(print)
    commands = {arm.name: train_command(arm, RUNS / arm.name, seed=0) for arm in TRIED}
    names = list(commands)
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        run_together({name: commands[name] for name in pair}, print)
    measure([RUNS / name for name in names]).save(RESULTS)


if __name__ == "__main__":
    main()
