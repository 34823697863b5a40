"""What the implicit gradient costs after 127 iterations, over what it costs after one."""

from __future__ import annotations

from dataclasses import replace

from fastslots.benchmark import Provider
from gpu.job import Job
from gpu.timing.measure import measure
from gpu.timing.shapes import DRY_RUN, case_of

SHAPES = ("slate128", "clevr", "slate64", "dinosaur")
PROVIDERS = (
    Provider("triton", "implicit", graphed=True),
    Provider("triton", "implicit"),
    Provider("reference", "implicit"),
)


def main(job: Job) -> None:
    """Measures memory and backward of every shape at both numbers of iterations."""

    def do(shape: str) -> bool:
        case = case_of(shape, job.dry_run)
        case = replace(case, name=f"flat-{shape}", iterations=(1, 2) if job.dry_run else (1, 127))
        return measure(job, shape, case, PROVIDERS, repeats=50, time_limit_s=4.0)

    job.each(DRY_RUN if job.dry_run else SHAPES, do)
