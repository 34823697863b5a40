"""Implicit against unrolled SLATE, same seed and scenes, for the time that is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpu.job import Job, Skip

PROGRAM = Path(__file__).resolve().parent.parent / "compare_gradients.py"


def main(job: Job) -> None:
    """Runs the comparison, which keeps its own time and resumes its own files in OUTPUT/train."""
    job.each(["all"], lambda _: _train(job), most_s=job.seconds_left)


def _train(job: Job) -> bool:
    if not PROGRAM.exists():
        raise Skip(f"scripts/{PROGRAM.name} is not there")
    minutes = (job.seconds_left - 15) / 60
    command = [sys.executable, str(PROGRAM), "--minutes", f"{minutes:.2f}"]
    command += ["--output", str(job.output / "train"), *(["--tiny"] if job.dry_run else [])]
    return subprocess.run(command).returncode == 0
