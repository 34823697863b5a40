"""The tests that need a GPU, one process for every few processors; a row for each test."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest

from gpu.job import Job, Skip

TESTS = tuple(
    f"tests/kernels/{name}.py" for name in ("test_gpu", "test_causal_attention", "test_tables")
)
PROCESSES = 8
SECONDS_PER_TEST = 90


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
    command += ["-p", "gpu.checks.poisoned"]
    if processes and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes), "--max-worker-restart", "50"]
    code = pytest.main(command, plugins=[reporter])
    if code == pytest.ExitCode.OK and not reporter.counts["passed"]:
        raise Skip("all tests were skipped")
    return code == pytest.ExitCode.OK
