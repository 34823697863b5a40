"""SLATE's training step against SLATE in the form of its public code."""

from __future__ import annotations

from fastslots.benchmark import StepProvider, choose_step_providers, run_step_benchmark, step_cases
from fastslots.benchmark.step.check import TINY
from gpu.job import Job, Skip
from gpu.timing.measure import keep

BATCH_SIZE, VOCAB_SIZE = 50, 4096
IMAGE_SIZES = (64, 128)
COMPILED = (
    StepProvider("public", "unrolled"),
    StepProvider("public", "unrolled", compiled=True),
    StepProvider("fastslots", "implicit", compiled=True),
)


def main(job: Job) -> None:
    """Measures steps at every size, eager or, in a stage of their own, compiled."""
    sizes = (TINY.image_size,) if job.dry_run else IMAGE_SIZES
    job.each(map(str, sizes), lambda unit: _measure(job, unit), most_s=200.0)


def _measure(job: Job, unit: str) -> None:
    if job.dry_run:
        cases = step_cases(2, (int(unit),), (TINY.vocab_size,), "bf16", TINY)
    else:
        cases = step_cases(BATCH_SIZE, (int(unit),), (VOCAB_SIZE,), "bf16")
    compiled = job.stage == "slate_compiled"
    if compiled and job.dry_run:
        raise Skip("nothing is compiled in a dry run")
    results = run_step_benchmark(
        cases,
        COMPILED if compiled else choose_step_providers(compiled=False),
        job.device,
        repeats=3 if job.dry_run else 20,
        time_limit_s=10.0,
        progress=print,
    )
    keep(job, unit, results)
