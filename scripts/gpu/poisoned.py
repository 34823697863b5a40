"""A plugin of pytest: a worker whose GPU is unusable after a test's error ends, and a new one goes on."""

from __future__ import annotations

import os
import sys

import pytest

ERRORS = ("CUDA error", "Error [CUDA]")
_poisoned = False


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes an error of the driver, after which all that follows in this process may fail."""
    global _poisoned
    _poisoned = _poisoned or (
        report.failed and any(error in str(report.longrepr) for error in ERRORS)
    )


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Ends the worker once the test's report is on its way."""
    if _poisoned and "PYTEST_XDIST_WORKER" in os.environ:
        print(f"{nodeid}: the GPU may be unusable, a new worker goes on", file=sys.stderr)
        os._exit(1)
