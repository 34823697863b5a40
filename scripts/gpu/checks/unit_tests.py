"""The tests that need a GPU, one process for every few processors; a row for each test.

Also a plugin of pytest: a worker whose GPU is unusable after a test's error ends, and a new one goes on.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import pytest

from gpu.job import Job, Skip

TESTS = tuple(
    f"tests/kernels/{name}.py" for name in ("test_gpu", "test_causal_attention", "test_tables")
)
PROCESSES = 8
SECONDS_PER_TEST = 90
POISONING = ("CUDA error", "Error [CUDA]")  # what the driver says then


class Reporter:
    """Writes a row for every test as it ends, and counts outcomes."""

    def __init__(self, job: Job) -> None:
        self.job, self.counts = job, {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """The call, or what kept a test from it, or failed after it."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            self.job.row(
                report.nodeid,
                test=report.outcome,
                seconds=report.duration,
                message=str(report.longrepr or "")[-1500:],
            )


def main(job: Job) -> None:
    """Runs them once; there is no other unit."""
    job.each(
        ["all"], lambda _: run(job, TESTS, 0 if job.dry_run else PROCESSES), most_s=job.seconds_left
    )


def run(job: Job, tests: Sequence[str], processes: int) -> bool:
    """Whether one passed and none failed.

    Args:
        job: Where rows go.
        tests: Files or folders.
        processes: Workers; 0: none but this process.

    Raises:
        Skip: If all were skipped.
    """
    reporter = Reporter(job)
    command = ["-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", *tests]
    # Warnings of other versions of libraries are shown, and fail nothing.
    command += ["-W", "default", "--timeout", str(SECONDS_PER_TEST), "--timeout-method", "thread"]
    command += ["-p", "gpu.checks.unit_tests"]
    if processes and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes), "--max-worker-restart", "50"]
    code = pytest.main(command, plugins=[reporter])
    if code == pytest.ExitCode.OK and not reporter.counts["passed"]:
        raise Skip("all tests were skipped")
    return code == pytest.ExitCode.OK


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
        self.poisoned = self.poisoned or any(error in message for error in POISONING)

    def pytest_runtest_logfinish(self) -> None:
        """Ends the worker once the test's report is on its way."""
        if self.poisoned:
            os._exit(1)
