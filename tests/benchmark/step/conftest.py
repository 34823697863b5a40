"""Results that several files look at."""

import pytest

from fastslots.benchmark import (
    run_step_benchmark,
    step_cases,
)
from fastslots.benchmark.step import runner
from tests.benchmark.step.cases import CONFIG, CPU, EAGER


@pytest.fixture(scope="session")
def results():
    cases = step_cases(2, [16, 24], [40], config=CONFIG)
    return run_step_benchmark(cases, EAGER, CPU, repeats=3, time_limit_s=0)


@pytest.fixture
def unchecked(monkeypatch):
    """For tests of what comes after the checks."""
    monkeypatch.setattr(runner, "check_against_public", lambda *_: None)
