"""Measures with the package's benchmark, and writes its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fastslots.benchmark import Case, Provider, Results, StepResults, run_benchmark
from fastslots.benchmark.attention.providers import sort_out
from gpu.job import Job


def measure(job: Job, unit: str, case: Case, providers: Iterable[Provider], **limits: Any) -> bool:
    """Measures all that can run here.

    Args:
        job: Where rows go.
        unit: Of the rows.
        case: What.
        providers: How to compute.
        limits: See `run_benchmark`.

    Returns:
        Whether all results were right.
    """
    chosen, skipped = sort_out(providers, job.device)
    if job.dry_run:
        limits = {"repeats": 3, "time_limit_s": 0.0}
    results = run_benchmark([case], chosen, job.device, skipped=skipped, progress=print, **limits)
    keep(job, unit, results)
    return not results.wrong


def keep(job: Job, unit: str, results: Results | StepResults) -> None:
    """Writes a row for all that was measured, and for all that was not."""
    for row in results.rows:
        job.row(unit, result=asdict(row))
    for entry in results.skipped:
        job.row(unit, skipped=asdict(entry))
