"""Makes the calls of a case: compiled, warm, captured as CUDA graphs, and checked; and their memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fastslots.benchmark.attention.calls import Call, Problem
from fastslots.benchmark.attention.cases import Case
from fastslots.benchmark.attention.check import (
    MOST_ITERATIONS_CHECKED,
    Check,
    IncorrectResultError,
    check_call,
)
from fastslots.benchmark.attention.providers import PACKAGE, Provider
from fastslots.benchmark.measure.compile_budget import CompileBudget
from fastslots.benchmark.measure.launches import count_kernels
from fastslots.benchmark.measure.memory import MemoryUse, memory_use
from fastslots.benchmark.results_file import Progress, Skipped, reason

MOST_GRAPHS = 256  # more than all numbers of iterations of all cases together
MOST_ITERATIONS_COUNTED = 7


@dataclass
class Prepared:
    """The calls of a case that can run, and what was left out."""

    case: Case
    calls: list[Call] = field(default_factory=list)
    checks: dict[Call, Check] = field(default_factory=dict)  # of it, or after fewer iterations
    memory: dict[Call, MemoryUse] = field(default_factory=dict)  # of graphs: before their capture
    launches: dict[Provider, float | None] = field(default_factory=dict)  # kernels per iteration
    left_out: list[Skipped] = field(default_factory=list)

    def leave_out(
        self, provider: Provider, why: str, iterations: int | None = None, wrong: bool = False
    ) -> None:
        """Notes what is left out, at one or all numbers of iterations."""
        entry = Skipped(provider.label, why, self.case.name, provider.gradient, iterations, wrong)
        self.left_out.append(entry)


def prepare_case(
    case: Case,
    providers: Sequence[Provider],
    device: torch.device,
    compile_limit_s: float,
    progress: Progress,
) -> Prepared:
    """Prepares every provider at every number of iterations; leaves out what cannot run or is wrong.

    On CUDA the most iterations are compiled first: they matter most if the limit leaves something out.
    """
    problem, prepared, on_cuda = Problem.make(case, device), Prepared(case), device.type == "cuda"
    budget = CompileBudget(compile_limit_s, predicts=not on_cuda)

    with _many_graphs(any(provider.compiled for provider in providers)):
        for iterations in sorted(set(case.iterations), reverse=on_cuda):
            for provider in providers:
                name = f"{case.name}: {provider.label}, {provider.gradient}, T = {iterations}"
                progress(f"warming up {name}")
                call = _warm_up(provider, problem, iterations, budget)
                if isinstance(call, Call):
                    prepared.calls.append(call)
                else:
                    prepared.leave_out(provider, call, iterations)
        prepared.calls.sort(key=lambda call: call.iterations)
        progress(f"memory of {case.name}")
        _measure_memory(prepared, device)
        progress(f"counting the kernels of {case.name}")
        prepared.launches = launches_per_iteration(prepared.calls, device)
        _capture_and_check(prepared, device, progress)
    prepared.left_out.sort(key=lambda entry: entry.iterations or 0)
    return prepared


def launches_per_iteration(
    calls: Sequence[Call], device: torch.device
) -> dict[Provider, float | None]:
    """Kernels that each further iteration of a forward launches, by provider.

    The difference between the least and the greatest number of iterations up to 7. A provider measured
    at fewer than two such numbers, and all on a CPU or where the profiler sees no kernel, have None.
    CUDA graphs hold the same kernels, so they are counted without them: count before any graph is
    captured.
    """
    found: dict[Provider, float | None] = {}
    for provider in dict.fromkeys(call.provider for call in calls):
        counted = {
            call.iterations: call
            for call in calls
            if call.provider == provider and call.iterations <= MOST_ITERATIONS_COUNTED
        }
        found[provider] = None
        if len(counted) >= 2 and device.type == "cuda":
            few, many = min(counted), max(counted)
            most = count_kernels(counted[many].compute, device)
            least = count_kernels(counted[few].compute, device)
            if least and most:
                found[provider] = (most - least) / (many - few)
    return found


def _measure_memory(prepared: Prepared, device: torch.device) -> None:
    for call in list(prepared.calls):
        try:
            prepared.memory[call] = memory_use(call.forward, call.backward, device)
        except torch.OutOfMemoryError as error:
            prepared.calls.remove(call)
            prepared.leave_out(call.provider, reason(error), call.iterations)


def _capture_and_check(prepared: Prepared, device: torch.device, progress: Progress) -> None:
    """Leaves out what cannot be captured, and at all numbers of iterations what is wrong at one."""
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    checked: dict[tuple[Provider, int], Check] = {}
    refused: set[Provider] = set()
    for call in list(prepared.calls):
        provider = call.provider
        if provider in refused:
            continue
        progress(f"checking {prepared.case.name}: {provider.label}, T = {call.iterations}")
        if provider.graphed:
            why_not = _capture(call, pool)
            if why_not is not None:
                prepared.calls.remove(call)
                prepared.leave_out(provider, why_not, call.iterations)
                continue
        try:
            prepared.checks[call] = _check(call, checked)
        except IncorrectResultError as error:
            refused.add(provider)
            prepared.leave_out(provider, str(error), wrong=True)
        except torch.OutOfMemoryError as error:
            refused.add(provider)
            prepared.leave_out(provider, reason(error))
        if call.graphs is not None:
            call.graphs.forget()
    prepared.calls = [call for call in prepared.calls if call.provider not in refused]


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
    except ValueError as error:
        if provider.backend != PACKAGE:
            raise
        return str(error)
    except RuntimeError as error:
        return reason(error, "torch.compile failed" if provider.compiled else None)
    return call


def _capture(call: Call, pool: object) -> str | None:
    """Captures a call's CUDA graphs; returns why that cannot be done, or None."""
    try:
        call.capture(pool)
    except RuntimeError as error:
        return reason(error, "no CUDA graph could be captured")
    return None


def _check(call: Call, checked: dict[tuple[Provider, int], Check]) -> Check:
    """Checks a provider once at each number of iterations that rounding allows to be checked."""
    iterations = min(call.iterations, MOST_ITERATIONS_CHECKED)
    key = call.provider, iterations
    if key not in checked:
        same = iterations == call.iterations
        checked[key] = check_call(call if same else Call(call.provider, call.problem, iterations))
    return checked[key]
