"""What rounding costs on a GPU, found without one: every accuracy test of `test_gpu`, with its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastslots_kernels.testing import Problem
from tests.kernels.cases import (
    CASES,
    LIMITS,
    Case,
    assert_within_budget,
    make_problem,
    run,
)
from tests.kernels.emulated import GPUProducts, gpu_arithmetic

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked_offsets")]
MOST = 0.8  # of the budget: what is emulated is not all that a GPU does
MOST_TF32 = 0.6  # operands that are cut, not rounded, take 0.66 to 0.77


@pytest.fixture(autouse=True)
def on_a_gpu() -> Iterator[None]:
    with gpu_arithmetic():
        yield


def problem_for(case: Case, dtype: torch.dtype) -> tuple[Problem, Problem]:
    """The problem, and the same rounded numbers in float64."""
    problem = make_problem(case, dtype).steady()
    return problem, problem.to(torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_is_far_from_twice_the_eager_error(case: Case, dtype: torch.dtype) -> None:
    problem, oracle = problem_for(case, dtype)
    exact = run(oracle, "reference")
    actual = run(problem, "triton")
    with GPUProducts():
        eager = run(problem, "reference")
    assert_within_budget(actual, eager, exact, dtype, MOST)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("case", CASES)
def test_error_with_tf32_is_far_from_twice_the_eager_error(case: Case) -> None:
    problem, oracle = problem_for(case, torch.float32)
    exact = run(oracle, "reference")
    actual = run(problem, "triton")
    with GPUProducts(tf32=True):
        eager = run(problem, "reference")
    # float16 has the mantissa of TF32.
    assert_within_budget(actual, eager, exact, torch.float16, MOST_TF32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_under_autocast_is_far_from_twice_the_eager_error(
    case: Case, dtype: torch.dtype
) -> None:
    problem, oracle = problem_for(case, torch.float32)
    exact = run(oracle, "reference")
    with torch.autocast("cpu", dtype):
        actual, eager = run(problem, "triton"), run(problem, "reference")
    assert_within_budget(actual, eager, exact, dtype, MOST)


@pytest.mark.parametrize(("heads_times_slots", "width"), LIMITS)
def test_error_at_the_limits_is_far_from_twice_the_eager_error(
    heads_times_slots: int, width: int
) -> None:
    case = Case(b=2, n=77, c=width, d=width, k=heads_times_slots, m=64)
    problem, oracle = problem_for(case, torch.bfloat16)
    exact = run(oracle, "reference")
    actual, eager = run(problem, "triton"), run(problem, "reference")
    assert_within_budget(actual, eager, exact, torch.bfloat16, MOST)
