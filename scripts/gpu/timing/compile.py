"""Compiles the baselines, several at a time, into the cache that their measurement reads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from fastslots.benchmark import Call, Problem, Provider
from fastslots.benchmark.attention.check import MOST_ITERATIONS_CHECKED
from fastslots.benchmark.measure.precision import matmul_precision
from gpu.job import Job, Skip
from gpu.timing.attention import COMPILED, units
from gpu.timing.shapes import case_of

PROCESSES = 16
THREADS = 1  # of the compiler in each


def main(job: Job) -> None:
    """Compiles every shape, gradient and form in a process of its own."""
    names = [f"{unit} {backend}" for unit in units(job.dry_run) for backend in COMPILED]
    job.each(["all"], lambda _: _compile_all(job, names), most_s=job.seconds_left)


def _compile_all(job: Job, names: list[str]) -> bool:
    if job.dry_run:
        raise Skip("a dry run compiles nothing")

    def compile_one(name: str) -> bool:
        start = time.perf_counter()
        command = [sys.executable, "-m", "gpu.timing.compile", *name.split()]
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(THREADS)}
        try:
            done = subprocess.run(command, env=environment, timeout=max(job.seconds_left - 2, 1))
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
        job.row(name, exit_code=code, compile_s=time.perf_counter() - start)
        return code == 0

    with ThreadPoolExecutor(PROCESSES) as pool:
        return all(list(pool.map(compile_one, names)))


def compile_one(shape: str, gradient: str, backend: str) -> None:
    """Compiles one form of one shape by running it."""
    case = case_of(shape, tiny=False)
    problem = Problem.make(case, torch.device("cuda"))
    with matmul_precision(case.precision):
        for iterations in {
            *case.iterations,
            MOST_ITERATIONS_CHECKED,
        }:  # what is timed, and what is checked
            Call(Provider(backend, gradient, compiled=True), problem, iterations).run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    compile_one(*sys.argv[1:])
