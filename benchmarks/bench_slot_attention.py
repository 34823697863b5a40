"""Speed and memory against the usual forms: what README claims for two CPU cores and for a GPU.

    python -m pytest benchmarks/bench_slot_attention.py                # writes results/cpu-targets.json
    python -m pytest benchmarks/bench_slot_attention.py -m gpu         # what is claimed for a GPU

Needs a quiet machine and takes some minutes. The results of GPUs come from ``scripts/gpu_run``.
"""
# ruff: noqa: D103 - tests say what they do in their names

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastslots.benchmark import Call, Problem, Provider, check_call, preset, run_benchmark
from fastslots.benchmark.attention.reports.speedups import FEW_AND_MANY, growth
from fastslots.benchmark.measure.precision import matmul_precision

RESULTS = Path(__file__).parent / "results" / "cpu-targets.json"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROVIDERS = [Provider("reference", "implicit"), Provider("torch", "implicit")]
# Forward and backward of `reference` divided by those of `torch`, by case and iterations.
LEAST_SPEEDUPS = {("tokens-256", 7): 1.7, ("tokens-1024", 7): 2.0, ("features-16384", 3): 2.5}
MOST_KEPT_OF_INPUTS = 0.2
# Of the implicit gradient after 127 iterations, relative to that after one.
MOST_PEAK, MOST_BACKWARD = 1.01, 1.05
GPU_PROVIDERS = [
    Provider(backend, gradient, graphed=graphed)
    for gradient in ("no-grad", "implicit")
    for backend in ("reference", "torch", "triton")
    for graphed in (False, True)
]

GPU_SHAPES = {"slate128": 7, "clevr": 3}  # with the papers' numbers of iterations

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def gpu_case(name):
    (case,) = preset(name)
    return replace(case, precision="bf16")


@pytest.fixture(scope="module")
def rows():
    results = run_benchmark(preset("cpu-targets"), PROVIDERS, CPU, repeats=30, time_limit_s=60)
    results.save(RESULTS)
    return {(row.case, row.backend, row.iterations): row for row in results.rows}


@pytest.mark.parametrize(("case", "iterations"), LEAST_SPEEDUPS, ids=str)
def test_is_faster_than_the_usual_form(rows, case, iterations):
    assert rows[case, "torch", iterations].speedup >= LEAST_SPEEDUPS[case, iterations]


def test_keeps_the_same_bytes_after_any_number_of_iterations(rows):
    few, many = (rows["tokens-1024", "torch", iterations] for iterations in (1, 64))
    assert few.kept_bytes == many.kept_bytes <= MOST_KEPT_OF_INPUTS * few.input_bytes


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.backend)
@pytest.mark.parametrize("case", preset("cpu-targets"), ids=lambda case: case.name)
def test_forward_and_backward(benchmark, case, provider):
    call = Call(provider, Problem.make(case, CPU), max(n for n in case.iterations if n <= 7))
    check_call(Call(provider, call.problem, 1))
    benchmark(call.run)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", GPU_SHAPES)
def test_the_implicit_gradient_costs_the_same_after_any_number_of_iterations(name):
    case = replace(gpu_case(name), iterations=FEW_AND_MANY)
    graphed, eager = Provider("triton", "implicit", graphed=True), Provider("triton", "implicit")
    results = run_benchmark([case], [graphed, eager], CUDA, repeats=50, time_limit_s=12)
    grown = {found.many.provider: found for found in growth(results)}
    assert grown["triton"].peak <= MOST_PEAK
    assert grown["triton + graph"].backward <= MOST_BACKWARD


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("provider", GPU_PROVIDERS, ids=lambda p: f"{p.gradient}, {p.label}")
@pytest.mark.parametrize("name", GPU_SHAPES)
def test_on_a_gpu(benchmark, name, provider):
    case = gpu_case(name)
    with matmul_precision(case.precision):
        call = Call(provider, Problem.make(case, CUDA), GPU_SHAPES[name])
        check_call(Call(provider, call.problem, 1))
        if provider.graphed:
            call.capture(torch.cuda.graph_pool_handle())
        call.run()

        def run():
            call.run()
            torch.cuda.synchronize()

        benchmark(run)
