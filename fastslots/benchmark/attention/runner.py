"""Checks, measures and times every provider on every case."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from fastslots.benchmark.attention.calls import Call, Times
from fastslots.benchmark.attention.cases import GRADIENTS, Case
from fastslots.benchmark.attention.prepare import Prepared, prepare_case
from fastslots.benchmark.attention.providers import Provider, why_not
from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.measure.bandwidth import copy_gb_s
from fastslots.benchmark.measure.energy import Counter, energy_counter, joules_per_run
from fastslots.benchmark.measure.precision import matmul_precision
from fastslots.benchmark.measure.timing import check_limits, take_turns
from fastslots.benchmark.results_file import Progress, Skipped
from fastslots.environment import describe_environment

CONSTANT_MEMORY = Case("constant memory", 8, 256, 192, 6, 192, 192, iterations=(1, 7, 63))


def run_benchmark(
    cases: Sequence[Case],
    providers: Sequence[Provider],
    device: torch.device,
    *,
    skipped: Sequence[Skipped] = (),
    repeats: int = 20,
    time_limit_s: float = 20.0,
    compile_limit_s: float = math.inf,
    energy_s: float = 0.0,
    progress: Progress = lambda _: None,
) -> Results:
    """Measures cases, each provider at each number of iterations, all in turns.

    Results are compared with the float64 reference before anything is timed; what is wrong, cannot be
    compiled or captured, or does not fit the GPU's memory, is left out and its reason recorded.

    Args:
        cases: What to measure.
        providers: How to compute; see `choose_providers`.
        device: Where.
        skipped: What was left out before, to be recorded.
        repeats: Rounds of timing, at least 3.
        time_limit_s: After 3 rounds of a case, start no new one after this many seconds.
        compile_limit_s: Per case, compile nothing that would take compilation beyond this many seconds,
            judging by what came before: few iterations come first. On CUDA many come first, and none
            is started after this many seconds. The first one, which also loads the compiler, does not count.
        energy_s: On CUDA, run every call for this many seconds, at least 2, to measure its energy.
        progress: Called with what is done next.

    Raises:
        TypeError: If one is no number.
        ValueError: If repeats is less than 3 or a limit is negative.
    """
    check_limits(
        repeats, time_limit_s=time_limit_s, compile_limit_s=compile_limit_s, energy_s=energy_s
    )
    rows, left_out = [], list(skipped)
    copies = copy_gb_s(device)
    counter = energy_counter(device) if energy_s > 0 else None
    for case in cases:
        with matmul_precision(case.precision):
            prepared = prepare_case(case, providers, device, compile_limit_s, progress)
            progress(f"timing {case.name}")
            times = _times(prepared.calls, repeats, time_limit_s)
            for call in prepared.calls:
                if call not in times:
                    why = "out of memory when timed"
                    prepared.leave_out(call.provider, why, call.iterations)
            left_out += prepared.left_out
            progress(f"energy of {case.name}")
            joules = [_joules(call, series, counter, energy_s) for call, series in times.items()]
            rows += _rows(prepared, times, joules, copies)
    return Results(describe_environment(device), rows, left_out)


def measure_constant_memory(
    device: torch.device, case: Case = CONSTANT_MEMORY, time_limit_s: float = 4.0
) -> Results:
    """Measures what Table 1 is about: the implicit gradient's cost does not grow with iterations.

    Eager `reference` and the fastest backend of the device, unrolled and implicit.

    Args:
        device: Where. On two CPU cores it takes about 10 s.
        case: What.
        time_limit_s: See `run_benchmark`.
    """
    ours = "triton" if why_not(Provider("triton", "implicit"), device) is None else "torch"
    providers = [
        Provider(backend, gradient) for backend in ("reference", ours) for gradient in GRADIENTS
    ]
    return run_benchmark([case], providers, device, repeats=5, time_limit_s=time_limit_s)


def _times(calls: Sequence[Call], repeats: int, time_limit_s: float) -> dict[Call, list[Times]]:
    """Times calls in turns, by round; not those that ran out of memory."""
    found = take_turns([partial(_times_if_it_fits, call) for call in calls], repeats, time_limit_s)
    return {
        call: [times for times in series if times is not None]
        for call, series in zip(calls, found, strict=True)
        if None not in series
    }


def _times_if_it_fits(call: Call) -> Times | None:
    try:
        return call.times()
    except torch.OutOfMemoryError:
        return None


def _joules(
    call: Call, times: Sequence[Times], counter: Counter | None, window_s: float
) -> float | None:
    if counter is None:
        return None
    both_ms = min(one.both_ms for one in times)
    synchronize: Callable[[], None] = partial(torch.cuda.synchronize, call.device)
    return joules_per_run(call.run, both_ms, counter, synchronize, window_s)


def _rows(
    prepared: Prepared,
    times: Mapping[Call, Sequence[Times]],
    joules: Sequence[float | None],
    copies: float | None,
) -> list[Row]:
    usual = {
        (call.provider.gradient, call.iterations): series
        for call, series in times.items()
        if call.provider == Provider("reference", call.provider.gradient)
    }
    return [
        Row.of(
            call,
            prepared,
            series,
            usual.get((call.provider.gradient, call.iterations)),
            copies,
            energy,
        )
        for (call, series), energy in zip(times.items(), joules, strict=True)
    ]
