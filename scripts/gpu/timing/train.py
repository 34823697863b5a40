"""Implicit against unrolled SLATE, same seed and scenes, for the time that is left."""

from __future__ import annotations

import subprocess
import sys

from gpu.job import Job

SECONDS_TO_WRITE = 10.0


def main(job: Job) -> None:
    """Runs the comparison, which keeps its own time; its files go to OUTPUT/train."""
    job.each(["all"], lambda _: _train(job), most_s=job.seconds_left)


def _train(job: Job) -> bool:
    minutes = max(job.seconds_left - SECONDS_TO_WRITE, 1) / 60
    command = [sys.executable, "-m", "fastslots", "compare", "--minutes", f"{minutes:.2f}"]
    command += ["--device", job.device.type, "--output", str(job.output / "train")]
    commit = job.environment["commit"]
    command += ["--commit", commit] if commit is not None else []
    command += ["--tiny"] if job.dry_run else []
    return subprocess.run(command).returncode == 0
