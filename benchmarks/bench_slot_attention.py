"""Speed and memory of the torch backend against the usual form: what README claims for two CPU cores.

    python -m pytest benchmarks/bench_slot_attention.py

Writes benchmarks/results/cpu-targets.json. Needs a quiet machine and takes some minutes.
"""
# ruff: noqa: D103 - tests say what they do in their names

from pathlib import Path

import pytest
import torch

from fastslots.benchmark import Call, Problem, Provider, check_call, preset, run_benchmark

RESULTS = Path(__file__).parent / "results" / "cpu-targets.json"
CPU = torch.device("cpu")
PROVIDERS = [Provider("reference", "implicit"), Provider("torch", "implicit")]
# Forward and backward of `reference` divided by those of `torch`, by case and iterations.
LEAST_SPEEDUPS = {("tokens-256", 7): 1.7, ("tokens-1024", 7): 2.0, ("features-16384", 3): 2.5}
MOST_KEPT_OF_INPUTS = 0.2


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
