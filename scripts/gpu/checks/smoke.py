"""Forward and backward of the fused kernels against float64, on the papers' shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastslots.benchmark.attention.cases import preset
from fastslots.benchmark.measure.precision import autocast, matmul_precision, products_dtype
from fastslots.tools.gradcheck import Problem, make_problem, parse
from fastslots_kernels.accuracy import Comparison, compare, largest
from gpu.job import Job
from gpu.timing.shapes import ITERATIONS, TINY

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
    **{f"{shape} bf16": Check(shape, "bf16") for shape in ITERATIONS},
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
    """What the rule of `fastslots_kernels.accuracy` says of every output and gradient."""
    problem = make_check(check, device, tiny)
    exact, exact_grads = problem.to(torch.float64).results("reference")
    eager, eager_grads = results(check, problem, "reference")
    actual, grads = results(check, problem, "torch" if tiny else "triton")
    rounding = products_dtype(check.precision, problem.leaves["inputs"].dtype)
    scale = largest(*exact_grads.values())
    return compare(actual, eager, exact, rounding) + compare(
        grads, eager_grads, exact_grads, rounding, scale=scale
    )


def results(
    check: Check, problem: Problem, backend: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of a backend in the check's precision."""
    device = problem.leaves["inputs"].device
    with matmul_precision(check.precision), autocast(check.precision, device):
        return problem.results(backend)


def make_check(check: Check, device: torch.device, tiny: bool = False) -> Problem:
    """The tensors of a check, in its dtype."""
    (case,) = preset(check.shape)
    sizes = {**case.sizes, **(TINY if tiny else {})}
    flags = {
        "batch": check.batch or sizes["batch"],
        "inputs": sizes["num_inputs"],
        "input-size": sizes["input_size"],
        "slots": sizes["num_slots"],
        "slot-size": sizes["slot_size"],
        "mlp": sizes["mlp_hidden_size"],
        "iterations": NUM_ITERATIONS,
    }
    command = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    problem = make_problem(parse([*command, *(["--masked"] if check.masked else [])]), device)
    # Hidden units of the MLP are on or off: none that rounding switches, which no bound foresees.
    bias = problem.leaves["mlp_0_bias"]
    bias[::2], bias[1::2] = 4.0, -4.0
    return problem.to(torch.float64 if check.precision == "float64" else torch.float32)
