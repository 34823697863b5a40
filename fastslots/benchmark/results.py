"""Results and their file: one JSON schema for all benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastslots.benchmark.calls import Call
from fastslots.benchmark.cases import Case, Skipped
from fastslots.benchmark.environment import Environment
from fastslots.benchmark.memory import MemoryUse
from fastslots.benchmark.timing import Times

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One provider on one case at one number of iterations.

    Percentiles are over rounds. ``kept_bytes`` are alive after the forward beyond inputs and weights,
    ``peak_bytes`` at any time of forward and backward; None where the allocator does not say.
    ``speedup`` is the median over rounds of the time of reference in eager mode, same gradient and
    iterations, divided by this one's, forward and backward; None without such a reference.
    """

    case: str
    provider: str
    backend: str
    gradient: str
    compiled: bool
    batch: int
    num_inputs: int
    input_size: int
    num_slots: int
    slot_size: int
    mlp_hidden_size: int
    num_heads: int
    dtype: str
    iterations: int
    rounds: int
    forward_ms_p50: float
    forward_ms_p20: float
    forward_ms_p80: float
    backward_ms_p50: float
    backward_ms_p20: float
    backward_ms_p80: float
    both_ms_p50: float
    both_ms_p20: float
    both_ms_p80: float
    speedup: float | None
    input_bytes: int
    kept_bytes: int | None
    peak_bytes: int | None

    @classmethod
    def of(
        cls,
        case: Case,
        call: Call,
        memory: MemoryUse | None,
        times: Sequence[Times],
        reference: Sequence[Times] | None,
    ) -> Row:
        """Summarises the measurements of one call."""
        measured: dict[str, Any] = {
            f"{part}_p{percent}": _quantile((getattr(t, part) for t in times), percent)
            for part in ("forward_ms", "backward_ms", "both_ms")
            for percent in (50, 20, 80)
        }
        speedup = None
        if reference is not None:
            pairs = zip(reference, times, strict=True)
            speedup = _quantile((usual.both_ms / this.both_ms for usual, this in pairs), 50)
        return cls(
            case=case.name,
            provider=call.provider.label,
            backend=call.provider.backend,
            gradient=call.provider.gradient,
            compiled=call.provider.compiled,
            **case.sizes,
            dtype=case.dtype,
            iterations=call.iterations,
            rounds=len(times),
            **measured,
            speedup=speedup,
            input_bytes=case.input_bytes,
            kept_bytes=memory and memory.kept_bytes,
            peak_bytes=memory and memory.peak_bytes,
        )


@dataclass(frozen=True)
class Results:
    """What was measured, what was not and why, and where."""

    environment: Environment
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def cases(self) -> dict[str, list[Row]]:
        """Rows by case, in order."""
        cases: dict[str, list[Row]] = {}
        for row in self.rows:
            cases.setdefault(row.case, []).append(row)
        return cases

    def save(self, path: Path) -> None:
        """Writes the JSON file; under its name only once it is complete.

        Raises:
            OSError: If it cannot be written.
        """
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        write_whole(path, lambda unfinished: unfinished.write_text(text + "\n"))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a file that `save` wrote.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no such file.
        """
        try:
            content = json.loads(path.read_text())
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema must be {SCHEMA}; got {content['schema']!r}")
            if content["environment"].keys() != Environment.__annotations__.keys():
                raise ValueError(f"environment must hold {tuple(Environment.__annotations__)}")
            return cls(
                content["environment"],
                [Row(**row) for row in content["rows"]],
                [Skipped(**entry) for entry in content["skipped"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no results file of fastslots: {error!r}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name in its folder, which is made, and then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _quantile(values: Iterable[float], percent: int) -> float:
    return torch.tensor(list(values), dtype=torch.float64).quantile(percent / 100).item()
