"""Makes the calls of a case: compiled, warm, captured as CUDA graphs, and checked."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fastslots.benchmark.calls import (
    MOST_ITERATIONS_CHECKED,
    Call,
    Problem,
    check_call,
)
from fastslots.benchmark.cases import Case, Skipped
from fastslots.benchmark.compile_budget import CompileBudget
from fastslots.benchmark.launches import launches_per_iteration
from fastslots.benchmark.package import PACKAGE
from fastslots.benchmark.providers import Provider

MOST_GRAPHS = 256  # more than all numbers of iterations of all cases together

Progress = Callable[[str], None]


@dataclass
class Prepared:
    """The calls of a case that can run, and what was left out."""

    calls: list[Call] = field(default_factory=list)
    checks: dict[Provider, str] = field(default_factory=dict)  # how their results were checked
    launches: dict[Provider, float | None] = field(default_factory=dict)  # kernels per iteration
    left_out: list[Skipped] = field(default_factory=list)


def prepare_case(
    case: Case,
    providers: Sequence[Provider],
    device: torch.device,
    compile_limit_s: float,
    progress: Progress,
) -> Prepared:
    """Prepares every provider at every number of iterations.

    Raises:
        IncorrectResultError: If a provider's results are wrong.
    """
    problem, budget, prepared = (
        Problem.make(case, device),
        CompileBudget(compile_limit_s),
        Prepared(),
    )

    def leave_out(provider: Provider, iterations: int, reason: str) -> None:
        entry = Skipped(provider.label, reason, case.name, provider.gradient, iterations)
        prepared.left_out.append(entry)

    with _many_graphs(any(provider.compiled for provider in providers)):
        for iterations in sorted(set(case.iterations)):
            for provider in providers:
                if provider.compiled and not case.focuses_on(iterations):
                    continue
                name = f"{case.name}: {provider.label}, {provider.gradient}, T = {iterations}"
                progress(f"warming up {name}")
                call = _warm_up(provider, problem, iterations, budget)
                if isinstance(call, Call):
                    prepared.calls.append(call)
                else:
                    leave_out(provider, iterations, call)
        progress(f"counting the kernels of {case.name}")
        prepared.launches = launches_per_iteration(prepared.calls, device)
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        checked: set[tuple[Provider, int]] = set()
        for call in list(prepared.calls):
            progress(f"checking {case.name}: {call.provider.label}, T = {call.iterations}")
            if call.provider.graphed:
                reason = _capture(call, pool)
                if reason is not None:
                    prepared.calls.remove(call)
                    leave_out(call.provider, call.iterations, reason)
                    continue
            check = _check(call, checked)
            if check is not None:
                prepared.checks[call.provider] = check
            if call.graphs is not None:
                call.graphs.forget()
    return prepared


@contextmanager
def _many_graphs(compiled: bool) -> Iterator[None]:
    """One compiled graph for each number of iterations: more than the default allows."""
    if not compiled:
        yield
        return
    torch.compiler.reset()  # the graphs of the last case, and what they keep of its memory
    with (
        torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # off on purpose
        yield


def _warm_up(
    provider: Provider, problem: Problem, iterations: int, budget: CompileBudget
) -> Call | str:
    """Runs a call once, which compiles it; returns why it cannot run instead."""
    steps = provider.steps(iterations)
    if provider.compiled and not budget.allows(steps):
        return budget.reason
    try:
        start = time.perf_counter()
        call = Call(provider, problem, iterations)
        call.run()
        if provider.compiled:
            budget.spend(time.perf_counter() - start, steps)
    except torch.OutOfMemoryError as error:
        return out_of_memory(error)
    except ValueError as error:
        if provider.backend != PACKAGE:
            raise
        return str(error)
    except RuntimeError as error:
        if not provider.compiled:
            raise
        return f"torch.compile failed: {first_line(error)}"
    return call


def _capture(call: Call, pool: object) -> str | None:
    """Captures a call's CUDA graphs; returns why that cannot be done, or None."""
    try:
        call.capture(pool)
    except torch.OutOfMemoryError as error:
        return out_of_memory(error)
    except RuntimeError as error:
        return f"no CUDA graph could be captured: {first_line(error)}"
    return None


def _check(call: Call, checked: set[tuple[Provider, int]]) -> str | None:
    """Checks a provider once at each number of iterations that rounding allows to be checked."""
    iterations = min(call.iterations, MOST_ITERATIONS_CHECKED)
    if (call.provider, iterations) in checked:
        return None
    checked.add((call.provider, iterations))
    same = iterations == call.iterations
    return check_call(call if same else Call(call.provider, call.problem, iterations))


def out_of_memory(error: Exception) -> str:
    """Why something did not fit."""
    return f"out of memory: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, without the trace that compilers append."""
    return str(error).strip().partition("\n")[0]
