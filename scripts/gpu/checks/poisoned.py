"""A plugin of pytest: a worker whose GPU is unusable after a test's error ends, and a new one goes on."""

from __future__ import annotations

import os

import pytest

ERRORS = ("CUDA error", "Error [CUDA]")


def pytest_configure(config: pytest.Config) -> None:
    """In the workers alone."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Ender())


class _Ender:
    def __init__(self) -> None:
        self.poisoned = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes an error of the driver, after which all that follows in this process may fail."""
        message = str(report.longrepr) if report.failed else ""
        self.poisoned = self.poisoned or any(error in message for error in ERRORS)

    def pytest_runtest_logfinish(self) -> None:
        """Ends the worker once the test's report is on its way."""
        if self.poisoned:
            os._exit(1)
