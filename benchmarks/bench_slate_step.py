"""SLATE's training step against the public form: what README claims for two CPU cores.

    python -m pytest benchmarks/bench_slate_step.py

Writes benchmarks/results/slate-step-cpu.json. Needs a quiet machine and takes some minutes.
"""
# ruff: noqa: D103 - tests say what they do in their names

from pathlib import Path

import pytest
import torch

from fastslots.benchmark import BASELINE, Step, StepProvider, run_step_benchmark, step_cases
from fastslots.benchmark.step.check import check_against_public

RESULTS = Path(__file__).parent / "results" / "slate-step-cpu.json"
CPU = torch.device("cpu")
(CASE,) = step_cases(4, image_sizes=[64], vocab_sizes=[4096])
IMPLICIT = StepProvider("fastslots", "implicit")
PROVIDERS = [BASELINE, StepProvider("fastslots", "unrolled"), IMPLICIT]
LEAST_SPEEDUP = 1.5
MOST_PEAK_RATIO = 0.7

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def implicit():
    results = run_step_benchmark([CASE], PROVIDERS, CPU, repeats=20, time_limit_s=240)
    results.save(RESULTS)
    return next(
        row for row in results.rows if row.provider == "fastslots" and row.gradient == "implicit"
    )


def test_is_faster_than_the_public_form(implicit):
    assert implicit.speedup >= LEAST_SPEEDUP


def test_needs_less_memory_than_the_public_form(implicit):
    assert implicit.peak_ratio <= MOST_PEAK_RATIO


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: f"{p.label}-{p.gradient}")
def test_training_step(benchmark, provider):
    if provider != BASELINE:
        check_against_public(provider.gradient, CPU)
    step = Step(provider, CASE, CPU)
    benchmark.pedantic(step.run, rounds=5, warmup_rounds=2)
