"""Time, number and resources of every kernel of a training step, by the profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastslots.benchmark import Call, Problem, Provider
from fastslots.benchmark.measure.precision import matmul_precision
from fastslots.benchmark.measure.timing import L2_FLUSH_BYTES
from gpu.job import Job
from gpu.timing.shapes import DRY_RUN, PAPERS, case_of

WARM_UP, REPEATS = 3, 10
RESOURCES = ("grid", "block", "registers per thread", "shared memory", "blocks per SM")


def main(job: Job) -> None:
    """Profiles the fused kernels on every shape: iterations alone, and a training step."""
    shapes = DRY_RUN if job.dry_run else PAPERS
    units = [f"{shape} {gradient}" for shape in shapes for gradient in ("no-grad", "implicit")]
    job.each(units, lambda unit: _profile(job, unit), most_s=30.0)


def _profile(job: Job, unit: str) -> None:
    shape, gradient = unit.split()
    case = case_of(shape, job.dry_run)
    problem = Problem.make(case, job.device)
    call = Call(Provider("torch" if job.dry_run else "triton", gradient), problem, *case.iterations)
    with matmul_precision(case.precision):
        events = kernel_events(call, job.device)
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_name[event["name"]].append(event)
    for name, launches in by_name.items():
        times = [launch["dur"] for launch in launches]
        arguments = launches[0]["args"]
        job.row(
            unit,
            kernel=name[:120],
            launches=len(launches) / REPEATS,
            us_p50=median(times),
            us_per_step=sum(times) / REPEATS,
            resources={key: arguments[key] for key in RESOURCES if key in arguments},
        )


def kernel_events(call: Call, device: torch.device) -> list[dict[str, Any]]:
    """The kernels of `REPEATS` warm runs as the profiler traces them; operators on a CPU."""
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    for _ in range(WARM_UP):
        call.run()
    source = torch.empty(L2_FLUSH_BYTES if on_cuda else 1, dtype=torch.uint8, device=device)
    flushed = torch.empty_like(source)
    with profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(REPEATS):
            flushed.copy_(source)  # by the driver: no kernel
            call.run()
        if on_cuda:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())["traceEvents"]
    category = "kernel" if on_cuda else "cpu_op"
    events = [event for event in trace if event.get("cat") == category]
    if not events:
        raise RuntimeError("the profiler saw no kernel")
    return events
