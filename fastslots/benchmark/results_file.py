"""What all benchmarks share: results with their environment, and their JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from fastslots.environment import Environment
from fastslots.files import write_text

SCHEMA = 2
READABLE = (1, 2)  # rows of 1 lack fields that have defaults


Progress = Callable[[str], None]  # told what is done next


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why. None: all values of that field. wrong: its results are."""

    provider: str
    reason: str
    case: str | None = None
    gradient: str | None = None
    iterations: int | None = None
    wrong: bool = False


class CaseRow(Protocol):
    """A measurement: a dataclass of JSON's types, one of whose fields names the case."""

    @property
    def case(self) -> str:
        """Name of what was measured."""
        ...


RowT = TypeVar("RowT", bound=CaseRow)


@dataclass(frozen=True)
class ResultsFile(Generic[RowT]):
    """What was measured, what was not and why, and where."""

    row_type: ClassVar[type[Any]]

    environment: Environment
    rows: list[RowT] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def cases(self) -> dict[str, list[RowT]]:
        """Rows by case, in order."""
        cases: dict[str, list[RowT]] = {}
        for row in self.rows:
            cases.setdefault(row.case, []).append(row)
        return cases

    def save(self, path: Path) -> None:
        """Writes the JSON file; under its name only once it is complete.

        Raises:
            OSError: If it cannot be written.
        """
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")

    @property
    def wrong(self) -> list[Skipped]:
        """What was left out because its results are wrong."""
        return [entry for entry in self.skipped if entry.wrong]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no such file.
        """
        with json_of(path, "results file") as content:
            if content["schema"] not in READABLE:
                raise ValueError(f"schema must be one of {READABLE}; got {content['schema']!r}")
            if content["environment"].keys() != Environment.__annotations__.keys():
                raise ValueError(f"environment must hold {tuple(Environment.__annotations__)}")
            return cls(
                content["environment"],
                [cls.row_type(**row) for row in content["rows"]],
                [Skipped(**entry) for entry in content["skipped"]],
            )


@contextmanager
def json_of(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """What a JSON file holds; whatever is wrong with it inside is an error that names the file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON file, or no `kind` of fastslots.
    """
    try:
        yield json.loads(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {kind} of fastslots: {error!r}") from error


def same_named(row_type: type[Any], *sources: object) -> dict[str, Any]:
    """Of a row's fields, those that a source has an attribute of that name for; of several, the first."""
    found: dict[str, Any] = {}
    names = {one.name for one in fields(row_type)}
    for source in reversed(sources):
        found |= {name: getattr(source, name) for name in names if hasattr(source, name)}
    return found


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, by the names of a row's fields."""
    return {f"{name}_p{percent}": quantile(values, percent) for percent in (50, 20, 80)}


def quantile(values: Iterable[float], percent: int) -> float:
    """A percentile, interpolated between neighbours."""
    return torch.tensor(list(values), dtype=torch.float64).quantile(percent / 100).item()


def reason(error: RuntimeError, failed: str | None = None) -> str:
    """Why something is left out: there was no memory for it, or what was done has `failed`.

    Raises:
        RuntimeError: The error, if it is another one, and nothing may fail.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {first_line(error)}"
    if failed is None:
        raise error
    return f"{failed}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says, without the trace that compilers append."""
    return str(error).strip().partition("\n")[0]
