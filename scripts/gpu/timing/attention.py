"""Slot attention at the papers' shapes: each stage of this module measures what it is named after."""

from __future__ import annotations

from dataclasses import replace

from fastslots.benchmark import Provider
from gpu.job import Job
from gpu.timing.measure import measure
from gpu.timing.shapes import BASELINES, DRY_RUN, PAPERS, case_of

GRADIENTS = ("no-grad", "implicit")
COMPILED = ("reference", "torch")
GROWING = ("slate128", "clevr", "slate64", "dinosaur")
TIMED = [
    *(
        Provider(backend, gradient, graphed=graphed)
        for gradient in GRADIENTS
        for backend in ("triton", "torch", "reference")
        for graphed in (True, False)
    ),
    Provider("reference", "unrolled"),
]
GROWN = [
    Provider("triton", "implicit", graphed=True),
    Provider("triton", "implicit"),
    Provider("reference", "implicit"),
]


def main(job: Job) -> None:
    """Measures every shape; nothing runs beside it."""
    if job.stage == "baselines":
        job.each(units(job.dry_run), lambda unit: _baselines(job, unit), most_s=100.0)
    elif job.stage == "flat":
        job.each(DRY_RUN if job.dry_run else GROWING, lambda unit: _flat(job, unit))
    else:
        job.each(DRY_RUN if job.dry_run else PAPERS, lambda unit: _times(job, unit), most_s=75.0)


def units(dry_run: bool) -> list[str]:
    """Shapes and gradients of the baselines: iterations of all shapes first, since they compile faster."""
    shapes = DRY_RUN if dry_run else BASELINES
    return [f"{shape} {gradient}" for gradient in GRADIENTS for shape in shapes]


def _times(job: Job, shape: str) -> bool:
    """Iterations without a graph and training steps, eager and replayed as CUDA graphs."""
    return measure(job, shape, case_of(shape, job.dry_run), TIMED, repeats=40, time_limit_s=4.0)


def _baselines(job: Job, unit: str) -> bool:
    """The compiled forms, which are in the compiler's cache, with the fused kernels in the same rounds."""
    shape, gradient = unit.split()
    chosen = [
        Provider("triton", gradient, graphed=True),
        Provider("reference", gradient),
        Provider("reference", gradient, graphed=True),
        *[Provider("reference", "unrolled")] * (gradient == "implicit"),
        *(Provider(b, gradient, compiled=not job.dry_run, graphed=True) for b in COMPILED),
    ]
    return measure(job, unit, case_of(shape, job.dry_run), chosen, repeats=40, time_limit_s=4.0)


def _flat(job: Job, shape: str) -> bool:
    """What the implicit gradient costs after 127 iterations, over what it costs after one."""
    counts = (1, 2) if job.dry_run else (1, 127)
    case = replace(case_of(shape, job.dry_run), name=f"flat-{shape}", iterations=counts)
    return measure(job, shape, case, GROWN, repeats=50, time_limit_s=4.0)
