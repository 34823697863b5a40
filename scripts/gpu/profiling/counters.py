"""Hardware counters of the fused kernels, by Nsight Compute."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastslots.benchmark import Call, Problem, Provider
from fastslots.benchmark.measure.precision import matmul_precision
from gpu.job import Job
from gpu.timing.shapes import DRY_RUN, case_of

SHAPES = ("clevr", "slate128", "dinosaur", "slate64")
KERNELS = "regex:^_[a-z_]+_kernel$"  # as they are named in Python
SECTIONS = "SpeedOfLight MemoryWorkloadAnalysis Occupancy SchedulerStats WarpStateStats LaunchStats"


def main(job: Job) -> None:
    """Profiles one iteration, tracked step and backward of every shape; one row for each launch."""
    job.each(DRY_RUN if job.dry_run else SHAPES, lambda shape: _count(job, shape), most_s=50.0)


def _count(job: Job, shape: str) -> bool:
    program = job.cuda_program("ncu")
    path = job.output / f"counters-{shape}.csv"
    command = [program, "--clock-control", "none", "--profile-from-start", "off"]
    command += ["--kernel-name", KERNELS, "--csv", "--page", "raw", "--log-file", str(path)]
    for section in SECTIONS.split():
        command += ["--section", section]
    command += [sys.executable, "-m", "gpu.profiling.counters", shape]
    done = subprocess.run(command, timeout=max(job.seconds_left - 2, 1))
    launches = parse(path)
    for counters in launches:
        job.row(shape, kernel=counters.pop("Kernel Name", "?")[:120], counters=counters)
    return done.returncode == 0 and bool(launches)


def run_workload(shape: str) -> None:
    """A training step of one iteration, warm, between marks for the profiler: what it runs."""
    device = torch.device("cuda")
    case = replace(case_of(shape, tiny=False), iterations=(1,))
    call = Call(Provider("triton", "implicit"), Problem.make(case, device), 1)
    with matmul_precision(case.precision):
        call.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def parse(path: Path) -> list[dict[str, Any]]:
    """A dictionary of all counters for each launch; its file has a line of names and one of units.

    Numbers are numbers, times in µs.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[start:]))
    units = rows[0] if rows else {}
    return [
        dict(_counter(name, units.get(name) or "", value) for name, value in row.items() if value)
        for row in rows[1:]
        if row.get("ID", "").isdecimal()
    ]


def _counter(name: str, unit: str, text: str) -> tuple[str, float | str]:
    try:
        value: float | str = float(text.replace(",", ""))
    except ValueError:
        value = text
    if unit == "ns" and isinstance(value, float):
        unit, value = "us", value / 1000
    return f"{name} [{unit}]" if unit else name, value


if __name__ == "__main__":
    run_workload(sys.argv[1])
