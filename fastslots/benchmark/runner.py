"""Checks, measures and times every provider on every case."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from fastslots.benchmark.calls import MOST_ITERATIONS_CHECKED, Call, Problem, check_call
from fastslots.benchmark.cases import Case, Provider, Skipped
from fastslots.benchmark.compile_budget import CompileBudget
from fastslots.benchmark.environment import describe_environment
from fastslots.benchmark.memory import MemoryUse, memory_use
from fastslots.benchmark.results import Results, Row
from fastslots.benchmark.timing import Times, time_in_turns

MOST_GRAPHS = 256  # more than all numbers of iterations of all cases together

Progress = Callable[[str], None]


def run_benchmark(
    cases: Sequence[Case],
    providers: Sequence[Provider],
    device: torch.device,
    *,
    skipped: Sequence[Skipped] = (),
    repeats: int = 20,
    time_limit_s: float = 20.0,
    compile_limit_s: float = math.inf,
    progress: Progress = lambda _: None,
) -> Results:
    """Measures cases, each provider at each number of iterations, all in turns.

    Results are compared with the float64 reference before anything is timed; what cannot be compiled or
    does not fit the GPU's memory is left out and its reason recorded.

    Args:
        cases: What to measure.
        providers: How to compute; see `choose_providers`.
        device: Where.
        skipped: What was left out before, to be recorded.
        repeats: Rounds of timing, at least 3.
        time_limit_s: After 3 rounds of a case, start no new one after this many seconds.
        compile_limit_s: Per case, compile nothing that would take compilation beyond this many seconds,
            judging by what came before: few iterations come first. The first one, which also loads the
            compiler, does not count.
        progress: Called with what is done next.

    Raises:
        IncorrectResultError: If a provider's results are wrong.
        ValueError: If repeats is less than 3 or a limit is negative.
    """
    check_limits(repeats, time_limit_s, compile_limit_s)
    rows, left_out = [], list(skipped)
    for case in cases:
        calls, reasons = _prepare_all(case, providers, device, compile_limit_s, progress)
        left_out += reasons
        memory = []
        for call in calls:
            progress(f"memory of {case.name}: {call.provider.label}, T = {call.iterations}")
            memory.append(_memory(call, device))
        progress(f"timing {case.name}")
        rows += _rows(case, calls, memory, time_in_turns(calls, repeats, time_limit_s))
    return Results(describe_environment(device), rows, left_out)


def _prepare_all(
    case: Case,
    providers: Sequence[Provider],
    device: torch.device,
    compile_limit_s: float,
    progress: Progress,
) -> tuple[list[Call], list[Skipped]]:
    """The calls of a case that can run, checked and warm, and what was left out."""
    problem, budget = Problem.make(case, device), CompileBudget(compile_limit_s)
    calls: list[Call] = []
    left_out: list[Skipped] = []
    checked: set[tuple[Provider, int]] = set()
    for iterations in sorted(set(case.iterations)):
        for provider in providers:
            progress(
                f"checking {case.name}: {provider.label}, {provider.gradient}, T = {iterations}"
            )
            call = Call(provider, problem, iterations)
            reason = _prepare(call, budget, checked)
            if reason is None:
                calls.append(call)
            else:
                left_out.append(
                    Skipped(provider.label, reason, case.name, provider.gradient, iterations)
                )
    return calls, left_out


def _num_steps(call: Call) -> int:
    return call.iterations + (call.provider.gradient == "implicit")


def _prepare(call: Call, budget: CompileBudget, checked: set[tuple[Provider, int]]) -> str | None:
    """Compiles, checks and warms up a call; returns why it cannot run, or None."""
    compiled = call.provider.compiled
    if compiled and not budget.allows(_num_steps(call)):
        return budget.reason
    # One graph for each number of iterations: more than the default allows.
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS) if compiled else nullcontext():
        try:
            start = time.perf_counter()
            call.run()
            if compiled:
                budget.spend(time.perf_counter() - start, _num_steps(call))
        except torch.OutOfMemoryError as error:
            return f"out of memory: {first_line(error)}"
        except RuntimeError as error:
            if not compiled:
                raise
            return f"torch.compile failed: {first_line(error)}"
        _check(call, checked)
    for _ in range(2 if call.uses_cuda_graphs else 0):  # graphs are recorded after the first call
        call.run()
    return None


def _check(call: Call, checked: set[tuple[Provider, int]]) -> None:
    """Checks a provider once at each number of iterations that rounding allows to be checked."""
    iterations = min(call.iterations, MOST_ITERATIONS_CHECKED)
    if (call.provider, iterations) in checked:
        return
    same = iterations == call.iterations
    check_call(call if same else Call(call.provider, call.problem, iterations))
    checked.add((call.provider, iterations))


def _memory(call: Call, device: torch.device) -> MemoryUse | None:
    """None for CUDA graphs: their memory is a pool of their own that stays allocated."""
    if call.uses_cuda_graphs:
        return None
    return memory_use(call.forward, call.backward, device)


def _rows(
    case: Case,
    calls: Sequence[Call],
    memory: Sequence[MemoryUse | None],
    times: Sequence[Sequence[Times]],
) -> list[Row]:
    usual = {
        (call.provider.gradient, call.iterations): series
        for call, series in zip(calls, times, strict=True)
        if call.provider == Provider("reference", call.provider.gradient)
    }
    return [
        Row.of(case, call, used, series, usual.get((call.provider.gradient, call.iterations)))
        for call, used, series in zip(calls, memory, times, strict=True)
    ]


def check_limits(repeats: int, time_limit_s: float, compile_limit_s: float) -> None:
    """Checks what bounds a measurement.

    Raises:
        ValueError: If repeats is less than 3 or a limit is negative.
    """
    if repeats < 3:
        raise ValueError(f"repeats must be at least 3; got {repeats}")
    for name, limit in (("time_limit_s", time_limit_s), ("compile_limit_s", compile_limit_s)):
        if not limit >= 0:
            raise ValueError(f"{name} must be at least 0; got {limit}")


def first_line(error: Exception) -> str:
    """What an error says, without the trace that compilers append."""
    return str(error).strip().partition("\n")[0]
