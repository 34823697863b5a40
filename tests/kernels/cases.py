"""Cases of the kernel tests, and their error budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import Problem, Results, judge


@dataclass(frozen=True)
class Case:
    """Sizes and options of one comparison; `options` go to `slot_attention`."""

    b: int = 2
    n: int = 13
    c: int = 10
    d: int = 8
    k: int = 3
    m: int = 6
    masked: bool = False
    mean: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)


SLATE = Case(b=4, n=256, c=192, d=192, k=6, m=192, options={"num_iterations": 2})
WIDE = Case(b=2, n=300, c=256, d=256, k=24, m=1024, options={"num_iterations": 1})
CLEVR = Case(b=2, n=1000, c=64, d=64, k=11, m=128)
RAGGED = Case(b=32, n=101, c=40, d=24, k=5, m=56, masked=True, options={"num_heads": 3})
# The cases of which rounding is judged, on a GPU and as a GPU would round. With few slots the largest error,
# the eager reference's and the kernels', is a matter of luck: hence the many images of narrow cases.
CASES = [
    pytest.param(SLATE, id="slate"),
    pytest.param(WIDE, id="wide"),
    pytest.param(CLEVR, id="clevr"),
    pytest.param(RAGGED, id="ragged"),
    pytest.param(Case(b=16, n=200, c=64, d=64, k=7, m=64, mean=30.0), id="large-mean"),
    pytest.param(Case(b=16, n=200, c=64, d=64, k=7, m=64, mean=100.0), id="larger-mean"),
    pytest.param(
        Case(b=8, n=64, c=32, d=32, k=4, m=32, options={"gradient": "unrolled"}), id="unrolled"
    ),
]
# Heads times slots, and the width of inputs and slots, at the limits of the kernels.
LIMITS = [(1, 16), (17, 100), (64, 256), (32, 512), (16, 512)]


def make_problem(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """The problem of a case, drawn in float32 and rounded to `dtype`."""
    options = {**case.options}
    heads = options.pop("num_heads", 1)
    sizes = Sizes(case.b, case.n, case.c, case.k, case.d, heads, case.m)
    return Problem.make(sizes, dtype, masked=case.masked, mean=case.mean, seed=seed, **options)


def run(problem: Problem, backend: str, **options: Any) -> dict[str, Tensor]:
    """Outputs and all gradients, by name, for the gradients of `problem` on both outputs."""
    outputs, gradients = problem.results(backend, **options)
    return outputs | {f"d_{name}": gradient for name, gradient in gradients.items()}


def assert_equal_in_float64(actual: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    """Every entry within 1e-9 of the largest."""
    assert_within_budget(actual, oracle, oracle, torch.float64)


def assert_within_budget(
    actual: dict[str, Tensor],
    eager: dict[str, Tensor],
    oracle: dict[str, Tensor],
    dtype: torch.dtype,
    most: float = 1.0,
) -> None:
    """Largest error at most twice the eager reference's, plus one rounding of the largest entry.

    The largest entry of an output is its own; gradients share that of all of them. `most` is the share of
    that bound that may be used.
    """
    found = judge(_results(actual), _results(eager), _results(oracle), dtype)
    assert {row.name[:2] == "d " for row in found} == {True, False}
    for row in found:
        assert row.ok, str(row)
        assert row.share <= most, str(row)


def _results(by_name: dict[str, Tensor]) -> Results:
    gradients = {name[2:]: value for name, value in by_name.items() if name.startswith("d_")}
    outputs = {name: value for name, value in by_name.items() if not name.startswith("d_")}
    return Results(outputs, gradients)
