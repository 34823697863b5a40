"""Results that several files look at."""

import dataclasses

import pytest

from fastslots.benchmark import (
    Provider,
    Skipped,
    run_benchmark,
)
from tests.benchmark.attention.cases import CPU, REFERENCE, TINY, TORCH


@pytest.fixture(scope="session")
def results():
    providers = [REFERENCE, TORCH, Provider("reference", "unrolled"), Provider("torch", "unrolled")]
    case = dataclasses.replace(TINY, iterations=(1, 2, 5))
    skipped = [Skipped("triton", "no GPU")]
    return run_benchmark([case], providers, CPU, skipped=skipped, repeats=3)
