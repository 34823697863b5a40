"""Runs stages in processes of their own, within a time, and packs what they wrote."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpu.job import RESTART, Row, is_of, outcomes, read_rows
from gpu.stages import Stage

SCRIPTS = Path(__file__).resolve().parent.parent
SOURCES = [str(SCRIPTS), str(SCRIPTS.parent), str(SCRIPTS.parent / "kernels")]
LEAST_SECONDS = 12.0  # with less left, no process is started
RESERVE = 4.0  # seconds kept for packing and the summary
MOST_BYTES_PACKED = 6 * 2**20
RECORDS = "stages.jsonl"
BACK = "back"  # folder of archives in that of all files


@dataclass(frozen=True)
class Run:
    """One run of the program.

    Args:
        name: Of this run, part of every row.
        output: Folder of all files.
        archives: Folder of what is packed for the way back.
        end: When everything must be over, in seconds as by `time.time`.
        environment: Card, versions, commit.
        dry_run: On a CPU, with tiny tensors.
    """

    name: str
    output: Path
    archives: Path
    end: float
    environment: Row
    dry_run: bool

    @property
    def seconds_left(self) -> float:
        """For stages."""
        return self.end - RESERVE - time.time()


def with_sources() -> dict[str, str]:
    """Variables of processes that import from this checkout."""
    paths = [*SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def run_stages(stages: Sequence[Stage], run: Run) -> list[Row]:
    """Runs those that are not done, and returns a record of each; all is packed after every one."""
    records = []
    for stage in stages:
        if done_before(stage, run):
            records.append({"stage": stage.name, "status": "passed", "reason": "in an earlier run"})
            continue
        if run.seconds_left < LEAST_SECONDS:
            records.append({"stage": stage.name, "status": "left", "reason": "no time"})
            continue
        print(f"[{run.seconds_left:.0f} s left] {stage.name} ...", flush=True)
        record = run_stage(stage, run)
        records.append(record)
        with (run.output / RECORDS).open("a") as file:
            where = {"dry_run": run.dry_run, "environment": run.environment}
            file.write(json.dumps(record | where) + "\n")
        pack(run.output, run.archives)
        print(f"{stage.name}: {record['status']} {record['reason']}"[:300], flush=True)
    return records


def done_before(stage: Stage, run: Run) -> bool:
    """Whether its last record at this commit on this device says that it passed."""
    found = [
        row["status"]
        for row in read_rows(run.output / RECORDS)
        if row["stage"] == stage.name and is_of(row, run.environment)
    ]
    return found[-1:] == ["passed"]


def run_stage(stage: Stage, run: Run) -> Row:
    """Runs a stage, again where it broke off and left units untried, and says what became of it."""
    start = time.time()
    most_s = math.inf if run.dry_run else stage.most_s
    end = min(start + most_s, run.end - RESERVE)
    code: int | None = RESTART
    with (run.output / f"{stage.name}.log").open("a") as log:
        tried = -1
        while code not in (0, None) and (now := len(_outcomes(stage, run))) > tried:
            if tried >= 0 and end - time.time() < LEAST_SECONDS:
                code = None
                break
            tried = now
            code = _run(stage, run, end, log)
    status, reason = judge(_outcomes(stage, run), code)
    if status == "failed" and code not in (0, None, RESTART):
        reason += f" (exit code {code}: {_last_line(run.output / f'{stage.name}.log')})"
    seconds = time.time() - start
    return {
        "stage": stage.name,
        "run": run.name,
        "status": status,
        "reason": reason,
        "seconds": seconds,
    }


def judge(outcomes: dict[str, str], code: int | None) -> tuple[str, str]:
    """What became of a stage, and why.

    Args:
        outcomes: Of its units, as last written; "started" is one that broke off.
        code: Exit code of the last process; None: its time was up.
    """
    units: dict[str, list[str]] = {}
    for unit, outcome in outcomes.items():
        units.setdefault(outcome, []).append(unit)
    broken = units.get("failed", []) + (units.get("started", []) if code is not None else [])
    if broken:
        return "failed", f"failed: {', '.join(broken)}"
    if code is None or "left" in units:
        unfinished = units.get("left", []) + units.get("started", [])
        return "stopped", f"time was up; not done: {', '.join(unfinished) or 'the rest'}"
    if code != 0:
        return "failed", "broke off"
    if "passed" not in units:
        return "skipped", "nothing ran"
    skipped = units.get("skipped", [])
    return "passed", f"but skipped: {', '.join(skipped)}" if skipped else ""


def pack(output: Path, archives: Path) -> None:
    """Packs all files into results.tgz; large ones, which may not be packed small enough, are copied."""
    archives.mkdir(parents=True, exist_ok=True)
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    unfinished = archives / "results.unfinished"
    with tarfile.open(unfinished, "w:gz") as archive:
        for path in (path for path in files if not {archives, output / BACK} & {*path.parents}):
            name = path.relative_to(output).as_posix()
            if path.stat().st_size <= MOST_BYTES_PACKED:
                archive.add(path, arcname=name)
            else:
                shutil.copyfile(path, archives / name.replace("/", "-"))
    unfinished.replace(archives / "results.tgz")


def _command(stage: Stage, run: Run, end: float) -> list[str]:
    command = [sys.executable, str(SCRIPTS / "gpu_run"), "stage", stage.name]
    command += ["--output", str(run.output), "--run", run.name, "--end", str(end)]
    if run.environment["commit"] is not None:
        command += ["--commit", run.environment["commit"]]
    return command + (["--dry-run"] if run.dry_run else [])


def _run(stage: Stage, run: Run, end: float, log: IO[str]) -> int | None:
    """The exit code; None if it took too long. What the stage started ends with it."""
    environment = os.environ | with_sources() | {"PYTHONUNBUFFERED": "1"}
    if run.dry_run:  # of tiny tensors, which a second thread makes slower
        environment["OMP_NUM_THREADS"] = "1"
    environment.pop("TRITON_INTERPRET", None)
    process = subprocess.Popen(
        _command(stage, run, end),
        cwd=SCRIPTS.parent,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(max(end - time.time(), 1.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps it; go on without
            process.wait(5.0)


def _outcomes(stage: Stage, run: Run) -> dict[str, str]:
    return outcomes(run.output / f"{stage.name}.jsonl", run.name, run.environment)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
