"""The compiled forms, replayed as CUDA graphs, with the fused kernels in the same rounds."""

from __future__ import annotations

from fastslots.benchmark import Provider
from gpu.job import Job
from gpu.timing.measure import measure
from gpu.timing.shapes import BASELINES, DRY_RUN, case_of

GRADIENTS = ("no-grad", "implicit")
COMPILED = ("reference", "torch")


def units(dry_run: bool) -> list[str]:
    """Shapes and gradients: iterations of all shapes first, since they compile faster."""
    shapes = DRY_RUN if dry_run else BASELINES
    return [f"{shape} {gradient}" for gradient in GRADIENTS for shape in shapes]


def providers(gradient: str, dry_run: bool) -> list[Provider]:
    """What is timed together for one gradient."""
    compiled = [Provider(b, gradient, compiled=not dry_run, graphed=True) for b in COMPILED]
    usual = [Provider("reference", gradient), Provider("reference", gradient, graphed=True)]
    if gradient == "implicit":
        usual.append(Provider("reference", "unrolled"))
    return [Provider("triton", gradient, graphed=True), *usual, *compiled]


def main(job: Job) -> None:
    """Measures every shape; what the stage before compiled is taken from the compiler's cache."""

    def do(unit: str) -> bool:
        shape, gradient = unit.split()
        case = case_of(shape, job.dry_run)
        chosen = providers(gradient, job.dry_run)
        return measure(job, unit, case, chosen, repeats=40, time_limit_s=4.0)

    job.each(units(job.dry_run), do, most_s=100.0)
