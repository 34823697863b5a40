"""Times of iterations without a graph and of training steps, eager and replayed as CUDA graphs."""

from __future__ import annotations

from fastslots.benchmark import Provider
from gpu.job import Job
from gpu.timing.measure import measure
from gpu.timing.shapes import DRY_RUN, PAPERS, case_of

PROVIDERS = (
    *(
        Provider(backend, gradient, graphed=graphed)
        for gradient in ("no-grad", "implicit")
        for backend in ("triton", "torch", "reference")
        for graphed in (True, False)
    ),
    Provider("reference", "unrolled"),
)


def main(job: Job) -> None:
    """Measures every shape; nothing runs beside it."""

    def do(shape: str) -> bool:
        case = case_of(shape, job.dry_run)
        return measure(job, shape, case, PROVIDERS, repeats=40, time_limit_s=4.0)

    job.each(DRY_RUN if job.dry_run else PAPERS, do, most_s=75.0)
