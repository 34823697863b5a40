"""The smallest check of gradients under the sanitizer: bad accesses and races."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from gpu.job import Job
from gpu.runner import SCRIPTS

TOOLS = ("memcheck", "racecheck")
RACE = re.compile(r"Race reported between (\w+) access at (\S+) .*\n=+ +and (\w+) access at (\S+) ")
FOUND = 99  # exit code of a tool that found something
SMALLEST = "--batch 2 --inputs 40 --input-size 16 --slots 3 --slot-size 16 --mlp 16 --iterations 1"


def main(job: Job) -> None:
    """Runs every tool; one row each."""
    job.each(TOOLS, lambda tool: _check(job, tool), most_s=job.seconds_left)


def _check(job: Job, tool: str) -> bool:
    command = [
        job.cuda_program("compute-sanitizer"),
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND),
    ]
    command += [sys.executable, str(SCRIPTS / "gradcheck"), "--device", "cuda", *SMALLEST.split()]
    # Or it sees one large allocation.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command,
        env=environment,
        timeout=max(job.seconds_left - 1, 1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(done.stdout)
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    repeated, others = races(done.stdout)
    if repeated:
        summary.append(f"{repeated} of them one instruction's writes of what several threads hold")
    job.row(tool, exit_code=done.returncode, summary=" ".join(summary)[-200:])
    return done.returncode == 0 or (done.returncode == FOUND and repeated > 0 and others == 0)


def races(printed: str) -> tuple[int, int]:
    """How many hazards in what racecheck printed are writes by one instruction, and how many are others.

    A row's sum is held by every thread of the row. Where Triton moves it to another layout through shared
    memory, each of them writes it to the same place: a hazard by its form, not by its value.
    """
    found = RACE.findall(printed)
    repeated = sum(one == other == "Write" and at == to for one, at, other, to in found)
    return repeated, printed.count("Race reported between") - repeated
