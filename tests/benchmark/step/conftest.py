"""Results that several files look at."""

import pytest


@pytest.fixture(scope="session")
def results():
    # Not before TRITON_INTERPRET is set: see tests/conftest.py.
    from fastslots.benchmark import run_step_benchmark, step_cases  # noqa: PLC0415
    from tests.benchmark.step.cases import CONFIG, CPU, EAGER  # noqa: PLC0415

    cases = step_cases(2, [16, 24], [40], config=CONFIG)
    return run_step_benchmark(cases, EAGER, CPU, repeats=3, time_limit_s=0)


@pytest.fixture
def unchecked(monkeypatch):
    """For tests of what comes after the checks."""
    from fastslots.benchmark.step import runner  # noqa: PLC0415 - as above

    monkeypatch.setattr(runner, "check_against_public", lambda *_: None)
