"""Forward and backward of the fused kernels against float64, on the papers' shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastslots.benchmark.measure.precision import autocast, matmul_precision, products_dtype
from fastslots_kernels.testing import SHAPES, Comparison, Problem, Results, judge
from gpu.job import Job
from gpu.timing.shapes import PAPERS, TINY

# More steps amplify rounding until only luck would be compared.
NUM_ITERATIONS = 3


@dataclass(frozen=True)
class Check:
    """A shape, how it is computed, and what else is asked for."""

    shape: str
    precision: str  # of `fastslots.benchmark`, or "float64"
    masked: bool = False
    batch: int | None = None  # default: that of the paper, as the kernels will be timed


CHECKS = {
    **{f"{shape} bf16": Check(shape, "bf16") for shape in PAPERS},
    "slate128 bf16 masked": Check("slate128", "bf16", masked=True),
    **{f"{shape} float32": Check(shape, "ieee") for shape in ("slate64", "clevr")},
    "slate64 tf32": Check("slate64", "tf32"),
    "slate64 float64": Check("slate64", "float64", batch=2),
    "slate64 float64 masked": Check("slate64", "float64", masked=True, batch=2),
}


def main(job: Job) -> None:
    """Compares every output and gradient; one row each, with its error over what rounding explains."""
    job.each(CHECKS, lambda unit: _check(job, unit), most_s=45.0)


def _check(job: Job, unit: str) -> bool:
    right = True
    for row in compare_kernels(CHECKS[unit], job.device, job.dry_run):
        right = right and row.ok
        job.row(unit, tensor=row.name, ratio=row.share, ok=row.ok, **row._asdict())
    return right


def compare_kernels(check: Check, device: torch.device, tiny: bool) -> list[Comparison]:
    """What the rule of `fastslots_kernels.testing` says of every output and gradient."""
    problem = make_check(check, device, tiny)
    oracle = problem.to(torch.float64).results("reference")
    eager = results(check, problem, "reference")
    actual = results(check, problem, "torch" if tiny else "triton")
    return judge(actual, eager, oracle, products_dtype(check.precision, problem.inputs.dtype))


def results(check: Check, problem: Problem, backend: str) -> Results:
    """Outputs and gradients of a backend in the check's precision."""
    with matmul_precision(check.precision), autocast(check.precision, problem.inputs.device):
        return problem.results(backend)


def make_check(check: Check, device: torch.device, tiny: bool = False) -> Problem:
    """The tensors of a check, in its dtype."""
    sizes = TINY if tiny else SHAPES[check.shape].sizes
    sizes = sizes._replace(batch=check.batch or sizes.batch)
    dtype = torch.float64 if check.precision == "float64" else torch.float32
    problem = Problem.make(sizes, torch.float32, masked=check.masked, num_iterations=NUM_ITERATIONS)
    return problem.steady().to(dtype, device)
