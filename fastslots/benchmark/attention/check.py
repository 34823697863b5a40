"""What must hold before a call is timed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots.benchmark.attention.calls import Call
from fastslots.benchmark.attention.providers import PACKAGE, Provider
from fastslots.benchmark.measure.precision import products_dtype
from fastslots_kernels.testing import compare, largest

# Untrained steps amplify rounding, until only luck would be compared: of 160 correct float32 problems none
# breaks the rule below at 3 iterations, 4 do at 7. The loop is the same for all counts.
MOST_ITERATIONS_CHECKED = 3

BY_ORACLE, BY_RUNNING = "float64 reference", "runs: shape, finite numbers"


class IncorrectResultError(RuntimeError):
    """A provider's results are further from the float64 oracle than rounding explains."""


class Check(NamedTuple):
    """How a call was checked, and how far its gradients may be trusted."""

    how: str  # `BY_ORACLE` or `BY_RUNNING`
    gradient_error: float | None = None  # the worst, over what rounding explains; None: no gradient


def check_call(call: Call) -> Check:
    """Compares outputs and gradients with the float64 reference on the same rounded tensors.

    The rule is that of `fastslots_kernels.testing.compare`, with the eps of the products. Outputs must keep
    it. Gradients need not, since rounding may switch a hidden unit of the MLP on or off, which no bound
    foresees: their worst error is returned. The package of PyPI has parameters of its own: only that it
    runs is checked.

    Raises:
        IncorrectResultError: If the error of an output is greater, or something is not finite.
    """
    if call.provider.backend == PACKAGE:
        return _check_runs(call)
    usual, problem = Provider("reference", call.provider.gradient), call.problem
    oracle, oracle_grads = _results(Call(usual, problem.to(torch.float64), call.iterations))
    eager, eager_grads = _results(Call(usual, problem, call.iterations))
    actual, grads = _results(call)
    dtype = products_dtype(problem.precision, problem.inputs.dtype)
    for one in compare(actual, eager, oracle, dtype):
        if not one.ok:
            raise IncorrectResultError(
                f"{_description(call)}: {one.name} is off by {one.error:.3g}; "
                f"at most {one.bound:.3g} is rounding"
            )
    scale = largest(*oracle_grads.values())
    of_grads = compare(grads, eager_grads, oracle_grads, dtype, scale=scale)
    for one in of_grads:
        if not math.isfinite(one.error):
            raise IncorrectResultError(f"{_description(call)}: {one.name} is not finite")
    return Check(BY_ORACLE, max((one.share for one in of_grads), default=None))


def _check_runs(call: Call) -> Check:
    outputs, grads = _results(call)
    wrong = [name for name, tensor in (outputs | grads).items() if not tensor.isfinite().all()]
    if wrong or outputs["slots"].shape != call.problem.slots.shape:
        raise IncorrectResultError(
            f"{_description(call)}: slots have shape {list(outputs['slots'].shape)}, not finite are {wrong}"
        )
    return Check(BY_RUNNING)


def _results(call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients by name, in float64."""
    (slots, attn, _), grads = call.run()
    names: list[str] = ["inputs", "slots", *call.problem.weights.named_tensors()]
    if call.provider.backend == PACKAGE:
        names = [str(index) for index in range(len(grads))]
    by_name = {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=False)}
    return _in_float64({"slots": slots, "attn": attn}), _in_float64(by_name)


def _in_float64(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: t.detach().double() for name, t in tensors.items() if t is not None}


def _description(call: Call) -> str:
    precision = "" if call.problem.precision == "ieee" else f", {call.problem.precision}"
    return (
        f"{call.provider.label} ({call.provider.gradient}, {call.iterations} iterations, "
        f"{call.problem.inputs.dtype}{precision})"
    )
