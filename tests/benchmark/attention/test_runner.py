"""What is left out, and what is measured on a GPU."""

import dataclasses

import pytest
import torch

from fastslots.benchmark import (
    Call,
    Case,
    Problem,
    Provider,
    choose_providers,
    run_benchmark,
)
from fastslots.benchmark.attention import cases, prepare, providers
from fastslots.benchmark.attention.prepare import launches_per_iteration
from tests.benchmark.attention.cases import CPU, CUDA, NO_GRAD, REFERENCE, TINY, TORCH, needs_gpu

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 2}, "repeats must be at least 3; got 2"),
        ({"time_limit_s": -1}, "time_limit_s must be at least 0; got -1"),
        ({"compile_limit_s": float("nan")}, "compile_limit_s must be at least 0; got nan"),
    ],
)
def test_rejects_limits_that_break_a_rule(options, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark([TINY], [TORCH], CPU, **options)


def test_what_cannot_be_compiled_is_left_out_with_its_reason(monkeypatch):
    def fail():
        raise RuntimeError("no working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    compiled = Provider("reference", "implicit", compiled=True)
    measured = run_benchmark([TINY], [TORCH, compiled], CPU, repeats=3)
    assert {row.provider for row in measured.rows} == {"torch"}
    assert [(s.provider, s.iterations, s.reason) for s in measured.skipped] == [
        ("reference + compile", n, "torch.compile failed: no working C++ compiler") for n in (1, 2)
    ]


def test_nothing_is_compiled_beyond_the_limit():
    compiled = Provider("reference", "implicit", compiled=True)
    measured = run_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert not measured.rows
    assert [s.reason for s in measured.skipped] == [
        "torch.compile would take longer than the limit, 0 s"
    ] * 2


def test_compiles_a_graph_for_every_number_of_iterations(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile_(function, backend="eager", **options),
    )
    compiled = Provider("reference", "implicit", compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1):  # the default is 8: this is faster
        case = dataclasses.replace(TINY, iterations=(1, 2, 3))
        measured = run_benchmark([case], [compiled], CPU, repeats=3)
    assert not measured.skipped
    assert [row.iterations for row in measured.rows] == [1, 2, 3]
    assert all(row.compiled and row.speedup is None for row in measured.rows)


def test_what_does_not_fit_the_gpu_is_left_out_with_its_reason(monkeypatch):
    run = Call.run

    def run_small(call):
        if call.iterations == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run(call)

    monkeypatch.setattr(Call, "run", run_small)
    measured = run_benchmark([TINY], [TORCH], CPU, repeats=3)
    assert [row.iterations for row in measured.rows] == [1]
    assert [(s.iterations, s.reason) for s in measured.skipped] == [
        (2, "out of memory: CUDA out of memory. Tried to allocate 2 GiB")
    ]


@pytest.mark.parametrize("when", ["check_call", "memory_use", "times"])
def test_what_runs_out_of_memory_later_leaves_the_others(monkeypatch, when):
    where = {"check_call": prepare, "memory_use": prepare, "times": Call}[when]
    right = getattr(where, when)

    def run_out(first, *others):
        call = getattr(first, "__self__", first)
        if call.provider == TORCH and call.iterations == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(first, *others)

    monkeypatch.setattr(where, when, run_out)
    measured = run_benchmark([TINY], [REFERENCE, TORCH], CPU, repeats=3)
    left = {(row.provider, row.iterations) for row in measured.rows} - {("torch", 1)}
    assert left == {("reference", 1), ("reference", 2)}
    assert {s.provider for s in measured.skipped} == {"torch"}
    assert not measured.wrong
    assert "out of memory" in measured.skipped[0].reason


def test_errors_of_eager_providers_are_not_hidden(monkeypatch):
    def fail(call):
        raise RuntimeError("broken")

    monkeypatch.setattr(Call, "run", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_benchmark([TINY], [TORCH], CPU)


def test_a_provider_without_results_is_no_error():
    """All of them may be left out: nothing is timed, and the reasons are kept."""
    compiled = Provider("torch", "no-grad", compiled=True)
    results = run_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert (results.rows, len(results.skipped)) == ([], 2)


def test_warm_up_hides_no_error_of_ours(monkeypatch):
    def fail(*_):
        raise ValueError("inputs must have width 8")

    monkeypatch.setattr(prepare, "Call", fail)
    with pytest.raises(ValueError, match="inputs must have width 8"):
        run_benchmark([TINY], NO_GRAD, CPU)


def test_launches_per_iteration_are_those_of_further_ones(monkeypatch):
    """Of 5 kernels once and 3 per iteration; more than 7 iterations are not counted."""
    monkeypatch.setattr(
        prepare,
        "count_kernels",
        lambda run, device: 5 + 3 * run.__self__.iterations,
    )
    problem = Problem.make(TINY, CPU)
    found = [Call(NO_GRAD[0], problem, count) for count in (1, 3, 7, 15)]
    found.append(Call(NO_GRAD[1], problem, 7))
    assert launches_per_iteration(found, CUDA) == {NO_GRAD[0]: 3.0, NO_GRAD[1]: None}


def test_a_profiler_that_sees_no_kernel_counts_nothing(monkeypatch):
    monkeypatch.setattr(prepare, "count_kernels", lambda run, device: 0)
    problem = Problem.make(TINY, CPU)
    found = [Call(NO_GRAD[0], problem, count) for count in (1, 3)]
    assert launches_per_iteration(found, CUDA) == {NO_GRAD[0]: None}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", cases.PRECISIONS)
def test_every_provider_runs_on_a_gpu(precision):
    case = Case("small", 4, 100, 32, 3, 32, 64, iterations=(1, 3), precision=precision)
    chosen, skipped = choose_providers(CUDA, gradients=providers.MODES, compiled=False)
    results = run_benchmark([case], chosen, CUDA, repeats=3, skipped=skipped)
    assert not results.skipped
    assert {row.backend for row in results.rows} == {"reference", "torch", "triton"}
    for row in results.rows:
        assert row.launches_per_iteration >= 1
        assert row.copy_gb_s > 0 < row.forward_gb_s
        assert row.peak_bytes > 0


@pytest.mark.gpu
@needs_gpu
def test_compiled_forms_are_captured_on_a_gpu():
    case = Case("small", 4, 100, 32, 3, 32, 64, iterations=(2,))
    chosen, _ = choose_providers(CUDA, ["reference"], ["implicit", "no-grad"], graphed=False)
    results = run_benchmark([case], chosen, CUDA, repeats=3)
    assert not results.skipped
    assert sum(row.compiled and row.graphed for row in results.rows) == 4
