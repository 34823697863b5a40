"""The command line of `scripts/gpu_run`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from fastslots.devices import choose_device
from fastslots.environment import describe_environment
from gpu.job import Job, Row, Skip
from gpu.prepare import cache
from gpu.reports.summary import summary
from gpu.runner import BACK, SCRIPTS, Run, pack, run_stages, with_sources
from gpu.stages import CALLS, STAGES, Stage

MOST_SECONDS_TO_UNPACK = 60.0
DESCRIPTION = """\
All that needs a GPU, for a machine that is there for a few minutes and keeps nothing.

    scripts/gpu_run prepare runs/kernels                     # here: compiles all that will be launched
    scripts/gpu_run first --minutes 4 --output runs/gpu      # correctness, times, tests, counters
    scripts/gpu_run second --minutes 8 --output runs/gpu     # tiles, compiled baselines, memory, training
    scripts/gpu_run first --dry-run                          # the same on a CPU, with tiny tensors
    scripts/gpu_run report runs/gpu                          # into benchmarks/results, READMEs

Every stage is a process of its own with a time limit; the whole ends within --minutes. Each measurement is
a line of OUTPUT/STAGE.jsonl as soon as it is made, and names card, versions and commit; what a stage printed
is in OUTPUT/STAGE.log. What passed at this commit on this device is not done again. After every stage all
files are packed into ARCHIVES/results.tgz, and large ones copied there. A summary is printed last. The exit
code is 1 if something failed. Nothing needs to be installed: the packages are taken from this checkout.
"""


def parse(command: list[str] | None = None) -> argparse.Namespace:
    """Reads the arguments; ends the program if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="gpu_run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, minutes in {"first": 4.0, "second": 8.0}.items():
        stages = ", ".join(stage.name for stage in CALLS[name])
        add = commands.add_parser(name, help=stages).add_argument
        add("--minutes", type=float, default=minutes, help="for all of it, a hard bound")
        add("--output", type=Path, help="for all files; default: runs/gpu, or runs/gpu-dry-run")
        add(
            "--archives",
            type=Path,
            help="folder for what is to be brought back; default: OUTPUT/back",
        )
        add("--cache", type=Path, help="the archive of `prepare`, unpacked first")
        add("--commit", help="of the sources, where they are no git checkout")
        add("--only", action="append", choices=list(STAGES), help="this stage; repeatable")
        add("--dry-run", action="store_true", help="on a CPU, with tiny tensors")
    add = commands.add_parser("stage").add_argument  # what `first` and `second` start
    add("name", choices=list(STAGES))
    add("--output", type=Path, required=True)
    add("--run", required=True)
    add("--end", type=float, required=True)
    add("--commit")
    add("--dry-run", action="store_true")
    for name in ("prepare", "report"):
        commands.add_parser(name, add_help=False)
    found, rest = parser.parse_known_args(command)
    if rest and found.command not in ("prepare", "report"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    found.rest = rest
    return found


def main(command: list[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    flags = parse(command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stages end with the program
    if flags.command == "prepare":
        command = [sys.executable, "-m", "gpu.prepare.archive", *flags.rest]
        return subprocess.run(command, env=os.environ | with_sources()).returncode
    if flags.command == "report":
        return int(importlib.import_module("gpu.reports.files").main(flags.rest))
    if flags.command == "stage":
        return _run_one(STAGES[flags.name], flags)
    try:
        return _run_all(flags)
    except (OSError, ValueError) as error:  # no device, no space
        print(f"gpu_run: {error}", file=sys.stderr)
        return 2


def _run_all(flags: argparse.Namespace) -> int:
    end = time.time() + 60 * flags.minutes
    name = "gpu-dry-run" if flags.dry_run else "gpu"
    output: Path = (flags.output or SCRIPTS.parent / "runs" / name).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if flags.cache is not None:
        _use_cache(flags.cache)
    _, environment = _place(flags)
    archives = (flags.archives or output / BACK).resolve()
    started = time.strftime("%Y%m%d-%H%M%S")
    run = Run(started, output, archives, end, environment, flags.dry_run)
    stages = [stage for stage in CALLS[flags.command] if stage.name in (flags.only or STAGES)]
    records = run_stages(stages, run)
    text = summary(output, environment, records)
    text += _card_state()
    (output / "summary.txt").write_text(text + "\n")
    pack(output, run.archives)
    print(text)
    return int(any(record["status"] == "failed" for record in records))


def _run_one(stage: Stage, flags: argparse.Namespace) -> int:
    """In the stage's process."""
    device, environment = _place(flags)
    job = Job(stage.name, flags.output, flags.run, flags.end, environment, device, flags.dry_run)
    print(json.dumps(environment), flush=True)
    try:
        importlib.import_module(f"gpu.{stage.module}").main(job)
    except Skip as skip:
        job.row("all", outcome="skipped", reason=str(skip))
    return 0


def _place(flags: argparse.Namespace) -> tuple[torch.device, Row]:
    """The device, and card, versions and commit; no commit where the sources differ from it."""
    device = choose_device("cpu" if flags.dry_run else "cuda")
    environment: Row = {**describe_environment(device)}
    if flags.commit:
        return device, {**environment, "commit": flags.commit, "dirty": False}
    return device, {
        **environment,
        "commit": None if environment["dirty"] else environment["commit"],
    }


def _use_cache(archive: Path) -> None:
    """Unpacks compiled kernels for all stages; without them these compile what they launch.

    Raises:
        OSError: If there is no such file.
    """
    if not archive.exists():
        raise FileNotFoundError(f"--cache {archive} is not there")
    folder = Path(tempfile.mkdtemp(prefix="fastslots-kernels-"))
    command = [sys.executable, str(cache.__file__), str(archive), str(folder)]
    with suppress(subprocess.TimeoutExpired):
        code = subprocess.run(command, timeout=MOST_SECONDS_TO_UNPACK).returncode
        print(f"{archive}: unpacked into {folder}, exit code {code}", flush=True)
    os.environ.update(cache.environment(folder))


def _card_state() -> str:
    """Driver, clocks and temperature, where there is a card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
        return f"\n{fields}: {done.stdout.strip()}"
    return ""
