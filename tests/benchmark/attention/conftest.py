"""Results that several files look at."""

import dataclasses

import pytest


@pytest.fixture(scope="session")
def results():
    # Not before TRITON_INTERPRET is set: see tests/conftest.py.
    from fastslots.benchmark import Provider, Skipped, run_benchmark  # noqa: PLC0415
    from tests.benchmark.attention.cases import CPU, REFERENCE, TINY, TORCH  # noqa: PLC0415

    providers = [REFERENCE, TORCH, Provider("reference", "unrolled"), Provider("torch", "unrolled")]
    case = dataclasses.replace(TINY, iterations=(1, 2, 5))
    skipped = [Skipped("triton", "no GPU")]
    return run_benchmark([case], providers, CPU, skipped=skipped, repeats=3)
