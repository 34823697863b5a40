"""What a run writes down: ``metrics.jsonl`` and ``tensorboard/``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastslots._extras import require
from fastslots.files import write_text
from fastslots.training.folder import check_run_folder
from fastslots.training.step import check_finite


class Interval:
    """The steps since the last line of the log.

    Args:
        columns: `TrainingStep.columns`.
        rows: The values of steps before a resumption, means over all processes.
        device: Where those to come lie.
    """

    def __init__(
        self, columns: Sequence[str], rows: list[list[float]], device: torch.device
    ) -> None:
        self.columns = columns
        self._rows = [torch.tensor(row, dtype=torch.float64, device=device) for row in rows]
        self._start = time.perf_counter()
        self._timed = 0

    def add(self, values: Tensor) -> None:
        """Takes the values of one more step, and leaves them on the device."""
        self._rows.append(values.double())
        self._timed += 1

    def means(self, step: int, average: Callable[[Tensor], Tensor]) -> list[list[float]]:
        """Every step's values as means over the processes.

        Args:
            step: The last step's number, from 1.
            average: Takes the mean of a float64 tensor over the processes.

        Raises:
            DivergedError: If one is not finite, in every process.
        """
        if not self._rows:
            return []
        rows: list[list[float]] = average(torch.stack(self._rows)).tolist()
        check_finite(rows, self.columns, step - len(rows) + 1)
        return rows

    def steps_per_second(self) -> float:
        """Of the steps that were added, those before a resumption left out."""
        return self._timed / (time.perf_counter() - self._start)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Does not count the time of what is done in it."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def interval_means(columns: Sequence[str], rows: list[list[float]]) -> dict[str, float]:
    """Means over the steps of an interval, by name."""
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(columns, means, strict=True))


class RunLog:
    """Appends rows to ``metrics.jsonl`` and shows them in TensorBoard.

    Args:
        run: The run folder.
        first_step: Steps done before; rows of later ones are dropped: those steps will be done again.

    Raises:
        OSError: If a file cannot be written.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.run, self.metrics = run, run / "metrics.jsonl"
        _forget_after(self.metrics, first_step)
        tensorboard = require("torch.utils.tensorboard", "train")
        with self._writing("tensorboard"):
            self._board = tensorboard.SummaryWriter(
                str(run / "tensorboard"), purge_step=first_step + 1
            )

    def write(self, step: int, kind: str, row: Mapping[str, float]) -> None:
        """Writes a row of ``"train"`` or ``"validation"``; on the disk when this returns.

        Raises:
            OSError: If it cannot be written; earlier rows and checkpoints are untouched.
        """
        check_run_folder(self.run)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = json.dumps({"step": step, "kind": kind, **row, "time": now})
        with self._writing("metrics.jsonl"), self.metrics.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        with self._writing("tensorboard"):
            for name, value in row.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()

    def show(self, step: int, picture: Path) -> None:
        """Shows a PNG file in TensorBoard.

        Raises:
            OSError: If it cannot be written.
        """
        pixels = require("PIL.Image", "train").open(picture).convert("RGB")
        array = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
        with self._writing("tensorboard"):
            self._board.add_image(
                "samples", array.view(pixels.height, pixels.width, 3), step, dataformats="HWC"
            )
            self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file; what could not be written to it was said when it was."""
        with suppress(OSError):
            self._board.close()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            check_run_folder(self.run)
            raise OSError(
                f"{self.run / name} could not be written: {error}; checkpoints are as they were"
            ) from error


def memory_mib(device: torch.device) -> float:
    """MiB of memory: on CUDA the most allocated since the last call, on a CPU what is resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**20
    resident: int = require("psutil", "train").Process().memory_info().rss
    return resident / 2**20


def _forget_after(metrics: Path, step: int) -> None:
    """Drops the rows of later steps, and what a kill left of a last one."""
    if metrics.exists():
        rows = [(line, _step(line)) for line in metrics.read_text().splitlines()]
        kept = [line + "\n" for line, of in rows if of is not None and of <= step]
        write_text(metrics, "".join(kept))


def _step(line: str) -> int | None:
    """The step of a row, None of half a row."""
    try:
        row: dict[str, Any] = json.loads(line)
        return int(row["step"])
    except (ValueError, KeyError, TypeError):
        return None
