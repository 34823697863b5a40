"""What a stage works with: where its rows go, what of it is done, and when it must end."""

from __future__ import annotations

import faulthandler
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESTART = 75  # exit code: the device is unusable for this process; the next one goes on
LEAST_SECONDS = 3.0  # with less left, no unit is started

Row = dict[str, Any]


class Skip(Exception):
    """Raised by a unit that cannot run here; says why."""


@dataclass(frozen=True)
class Job:
    """One stage in its process.

    Args:
        stage: Its name; rows go to OUTPUT/STAGE.jsonl.
        output: Folder of all files.
        run: Names this run of the program; a unit is tried once in each.
        end: When the stage must be done, in seconds as by `time.time`.
        environment: Card, versions, commit: part of every row.
        device: Where.
        dry_run: Whether to use tiny tensors, and nothing compiled.
    """

    stage: str
    output: Path
    run: str
    end: float
    environment: Row
    device: torch.device
    dry_run: bool

    @property
    def seconds_left(self) -> float:
        """Until the stage is ended."""
        return self.end - time.time()

    def cuda_program(self, name: str) -> str:
        """Where a program of the CUDA toolkit is, for a job on a GPU.

        Raises:
            Skip: If it is not there, or no GPU is.
        """
        program = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
        if program is None:
            raise Skip(f"{name} is not there")
        self.needs_cuda("needs a CUDA device")
        return program

    def needs_cuda(self, why: str) -> None:
        """Raises `Skip` where there is no GPU."""
        if self.device.type != "cuda":
            raise Skip(why)

    def row(self, unit: str, **fields: Any) -> None:
        """Writes one line at once: what ends the process later does not lose it."""
        content = {"stage": self.stage, "unit": unit, "run": self.run, **fields}
        where = {"dry_run": self.dry_run, "environment": self.environment}
        with (self.output / f"{self.stage}.jsonl").open("a") as file:
            file.write(json.dumps(content | where) + "\n")

    def each(
        self, units: Iterable[str], do: Callable[[str], bool | None], most_s: float = 60.0
    ) -> None:
        """Does every unit that has not passed before; one that fails does not stop the others.

        Args:
            units: By name, the most important ones first.
            do: Does one; returns False, or raises, if it failed.
            most_s: Seconds for each; one that takes longer ends the process, and the next one goes on.
        """
        before = outcomes(self.output / f"{self.stage}.jsonl", self.run, self.environment)
        for unit in (unit for unit in units if before.get(unit, "left") == "left"):
            if self.seconds_left < LEAST_SECONDS:
                self.row(unit, outcome="left", reason="no time")
                continue
            self.row(unit, outcome="started")
            print(f"[{self.seconds_left:.0f} s left] {unit}", flush=True)
            # A dry run shows that all runs, not how fast.
            faulthandler.dump_traceback_later(most_s * (20 if self.dry_run else 1), exit=True)
            start = time.perf_counter()
            outcome, reason = self._outcome(unit, do)
            faulthandler.cancel_dump_traceback_later()
            self.row(unit, outcome=outcome, reason=reason, seconds=time.perf_counter() - start)
            if outcome == "failed" and self.device.type == "cuda" and not _usable(self.device):
                sys.exit(RESTART)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _outcome(self, unit: str, do: Callable[[str], bool | None]) -> tuple[str, str]:
        try:
            done = do(unit)
        except Skip as skip:
            return "skipped", str(skip)
        except Exception as error:  # whatever it is, the other units are to run
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {error}"[:500]
        return ("failed", "see its rows") if done is False else ("passed", "")


def read_rows(path: Path) -> list[Row]:
    """All whole lines of a file; none if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # cut off when the process was killed
            continue
    return rows


def is_of(row: Row, environment: Row) -> bool:
    """Whether a row was measured at this commit on this device."""
    found, commit = row["environment"], environment["commit"]
    return commit is not None and (found["commit"], found["device"]) == (
        commit,
        environment["device"],
    )


def outcomes(path: Path, run: str, environment: Row) -> dict[str, str]:
    """Of every unit of a file, what became of it in this run, or that it passed before at this place."""
    found: dict[str, str] = {}
    for row in read_rows(path):
        earlier = row.get("outcome") == "passed" and is_of(row, environment)
        if earlier or ("outcome" in row and row["run"] == run):
            found[row["unit"]] = row["outcome"]
    return found


def _usable(device: torch.device) -> bool:
    """Whether the device still answers: after some errors of a kernel, nothing works any more."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
