"""Checks, measures and times training steps, every provider on every case."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from fastslots.benchmark.measure.compile_budget import CompileBudget
from fastslots.benchmark.measure.memory import MemoryUse, memory_use
from fastslots.benchmark.measure.timing import check_limits, take_turns
from fastslots.benchmark.results_file import Progress, Skipped, reason
from fastslots.benchmark.step.cases import BASELINE, StepCase, StepProvider
from fastslots.benchmark.step.check import check_against_public, check_losses
from fastslots.benchmark.step.results import Measured, StepResults, StepRow
from fastslots.benchmark.step.step import Step
from fastslots.environment import describe_environment

PART_ROUNDS = 5
MORE_WARM_UP = 2  # after the first step, which makes Adam's state: then CUDA graphs are recorded


def run_step_benchmark(
    cases: Sequence[StepCase],
    providers: Sequence[StepProvider],
    device: torch.device,
    *,
    repeats: int = 20,
    time_limit_s: float = 30.0,
    compile_limit_s: float = math.inf,
    progress: Progress = lambda _: None,
    keep: Callable[[StepResults], object] = lambda _: None,
) -> StepResults:
    """Measures training steps, all providers of a case in turns.

    fastslots is compared with the public form before anything is timed; what cannot be compiled or does
    not fit the GPU's memory is left out and its reason recorded.

    Args:
        cases: What to measure.
        providers: How to compute; see `choose_step_providers`.
        device: Where.
        repeats: Rounds of timing, at least 3.
        time_limit_s: After 3 rounds of a case, start no new one after this many seconds.
        compile_limit_s: Per case, compile nothing that would take compilation beyond this many seconds,
            judging by what came before. The first one, which also loads the compiler, does not count.
        progress: Called with what is done next.
        keep: Called after each case with all results so far.

    Raises:
        IncorrectResultError: If fastslots and the public form differ.
        ValueError: If repeats is less than 3 or a limit is negative.
    """
    check_limits(repeats, time_limit_s=time_limit_s, compile_limit_s=compile_limit_s)
    for gradient in sorted({p.gradient for p in providers if p.implementation == "fastslots"}):
        progress(f"checking fastslots, {gradient}")
        check_against_public(gradient, device)
    environment = describe_environment(device)
    rows: list[StepRow] = []
    skipped: list[Skipped] = []
    for case in cases:
        if any(provider.compiled for provider in providers):
            torch.compiler.reset()  # the graphs of the last case, and what they keep of its memory
        memory, left_out = _prepare_all(case, providers, device, compile_limit_s, progress)
        progress(f"timing {case.name}")
        rows += _rows(_measure_all(memory, repeats, time_limit_s))
        skipped += left_out
        keep(StepResults(environment, rows, skipped))
        memory.clear()  # models and graphs, before those of the next case
    return StepResults(environment, rows, skipped)


def _prepare_all(
    case: StepCase,
    providers: Sequence[StepProvider],
    device: torch.device,
    compile_limit_s: float,
    progress: Progress,
) -> tuple[dict[Step, MemoryUse | None], list[Skipped]]:
    """The steps of a case that can run, checked and warm, with their memory, and what was left out."""
    budget = CompileBudget(compile_limit_s)
    losses: dict[Step, float] = {}
    reasons: dict[StepProvider, str] = {}
    for provider in providers:
        progress(f"warming up {case.name}: {provider.label}, {provider.gradient}")
        step = Step(provider, case, device)
        first_loss = _warm_up(step, budget)
        if isinstance(first_loss, float):
            losses[step] = first_loss
        else:
            reasons[provider] = first_loss
    check_losses({step.name: loss for step, loss in losses.items()}, case)
    memory: dict[Step, MemoryUse | None] = {}
    for step in losses:
        progress(f"memory of {step.name}, {case.name}")
        try:
            memory[step] = _memory(step)
        except torch.OutOfMemoryError as error:  # now that the others are there too
            reasons[step.provider] = reason(error)
    return memory, [
        Skipped(provider.label, why, case.name, provider.gradient)
        for provider, why in reasons.items()
    ]


def _warm_up(step: Step, budget: CompileBudget) -> float | str:
    """Compiles and warms up; returns the first loss, or why the step cannot run."""
    compiled = step.provider.compiled
    if compiled and not budget.allows():
        return budget.reason
    try:
        start = time.perf_counter()
        first_loss = step.run().item()
        if compiled:
            budget.spend(time.perf_counter() - start)
        for _ in range(MORE_WARM_UP):
            step.run()
    except RuntimeError as error:
        return reason(error, "torch.compile failed" if compiled else None)
    return first_loss


def _memory(step: Step) -> MemoryUse | None:
    """None for CUDA graphs: their memory is a pool of their own that stays allocated."""
    if step.uses_cuda_graphs:
        return None
    return memory_use(step.forward, step.backward_and_free, step.device)


def _measure_all(
    memory: Mapping[Step, MemoryUse | None], repeats: int, time_limit_s: float
) -> dict[Step, Measured]:
    """Times the parts of eager forwards, then whole steps, in turns."""
    eager = [step for step in memory if not step.provider.compiled]
    series = take_turns([step.part_times for step in eager], PART_ROUNDS, 0.0)
    parts = dict(zip(eager, series, strict=True))
    times = take_turns([step.times for step in memory], repeats, time_limit_s)
    return {
        step: Measured(by_round, parts.get(step, ()), used)
        for (step, used), by_round in zip(memory.items(), times, strict=True)
    }


def _rows(measured: Mapping[Step, Measured]) -> list[StepRow]:
    usual = next((m for step, m in measured.items() if step.provider == BASELINE), None)
    return [StepRow.of(step, of_step, usual) for step, of_step in measured.items()]
