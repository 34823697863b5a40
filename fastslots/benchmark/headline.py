"""The ratios that README.md begins with, of the files in benchmarks/results and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastslots.benchmark.attention.reports.speedups import (
    FEW_AND_MANY,
    FLAT,
    OURS,
    OURS_EAGER,
    growth,
)
from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.step.cases import BASELINE
from fastslots.benchmark.step.results import StepResults, StepRow
from fastslots.benchmark.tables import markdown_table
from fastslots.environment import Environment

# Of a CPU: file, case, numbers of iterations. Of every card: cases, with the papers' numbers of iterations.
CPU_SHAPES = (
    ("small", "small", (7, 63)),
    ("cpu-targets", "tokens-1024", (7,)),
    ("cpu-targets", "features-16384", (3,)),
)
CPU_GROWTH = ("small", (1, 63))
CPU_STEPS = "slate-step-cpu"
CARD_SHAPES = {"slate64": 7, "slate128": 7, "clevr": 3}
CARD_GROWTH = "slate64"  # the others are much the same
USUAL = "reference"

ATTENTION_HEADINGS = (
    "forward and backward",
    "machine",
    "T",
    "eager",
    "compiled",
    "unrolled",
    "peak memory",
)
ATTENTION_LEGEND = (
    "Cost of the usual form divided by that of fastslots' implicit gradient: above 1, fastslots needs less. "
    "Times are medians. eager: the same gradient, keys and values made once, both run eagerly. compiled: the "
    "same under torch.compile; on a GPU it and fastslots are replayed as CUDA graphs. unrolled: the papers' "
    "public code, eager; on a GPU against fastslots in a CUDA graph. peak memory: that of unrolled."
)
GROWTH_HEADINGS = ("the backward alone", "machine", "T", "in a graph", "eager", "peak memory")
GROWTH_LEGEND = (
    "Cost after T iterations divided by that after one. unrolled: of the usual form; implicit: of fastslots, "
    "on a GPU replayed as a CUDA graph, and launched eagerly. peak memory: of forward and backward."
)
STEP_HEADINGS = ("SLATE's training step", "machine", "eager", "compiled", "peak memory")
STEP_LEGEND = (
    "Cost of SLATE in the form of its public code, unrolled, divided by that of fastslots, implicit. eager, "
    "compiled: both. peak memory: of forward and backward, eager. Below 1, fastslots needs more."
)


def headline(results: Path) -> str:
    """Three tables in Markdown, each with what its columns mean: calls, growth, steps of SLATE.

    Args:
        results: Folder of the JSON files; every card has a folder in it.

    Raises:
        ValueError: If a file is no results file.
        OSError: If a file of a CPU cannot be read.
        KeyError: If a file lacks a row of fastslots, or of what it is always measured with.
    """
    tables = (
        (ATTENTION_HEADINGS, _attention_cells(results), ATTENTION_LEGEND),
        (GROWTH_HEADINGS, _growth_cells(results), GROWTH_LEGEND),
        (STEP_HEADINGS, _step_cells(results), STEP_LEGEND),
    )
    return "\n\n".join(
        f"{markdown_table(headings, cells, num_left=2)}\n\n{legend}"
        for headings, cells, legend in tables
    )


def _attention_cells(results: Path) -> Iterator[tuple[str, ...]]:
    for name, case, counts in CPU_SHAPES:
        found = Results.load(results / f"{name}.json")
        for count in counts:
            yield _compared(found, _machine(found.environment), case, count, "torch", "torch")
    for folder in _cards(results):
        found = Results.load(folder / "slot-attention.json")
        for case, count in CARD_SHAPES.items():
            if case in found.cases():
                yield _compared(found, _card(folder), case, count, OURS_EAGER, OURS)


def _compared(
    found: Results, machine: str, case: str, count: int, eagerly: str, replayed: str
) -> tuple[str, ...]:
    rows = {
        (row.provider, row.gradient): row
        for row in found.rows
        if (row.case, row.iterations) == (case, count)
    }
    eager, ours = rows[eagerly, "implicit"], rows[replayed, "implicit"]
    compiled = f"{USUAL} + compile" + (" + graph" if ours.graphed else "")
    unrolled = rows.get((USUAL, "unrolled"))
    return (
        _shape(ours),
        f"{machine}, {_precision(ours)}",
        str(count),
        _times(eager.speedup),
        _times(_ratio(rows.get((compiled, "implicit")), ours, "both_ms_p50")),
        _times(_ratio(unrolled, ours, "both_ms_p50")),
        _times(_ratio(unrolled, eager, "peak_bytes")),
    )


def _growth_cells(results: Path) -> Iterator[tuple[str, ...]]:
    name, (few, many) = CPU_GROWTH
    found = Results.load(results / f"{name}.json")
    rows = {(row.provider, row.gradient, row.iterations): row for row in found.rows}
    for provider, gradient in ((USUAL, "unrolled"), ("torch", "implicit")):
        at_few, at_many = (rows[provider, gradient, count] for count in (few, many))
        backward, peak = (_ratio(at_many, at_few, c) for c in ("backward_ms_p50", "peak_bytes"))
        machine = f"{_machine(found.environment)}, {_precision(at_many)}"
        shape = f"{gradient}, {_shape(at_many)}"
        yield shape, machine, str(many), "-", _times(backward), _times(peak)
    for folder in _cards(results):
        grown = growth(Results.load(folder / "slot-attention.json"))
        ours = {(each.many.case, each.many.provider): each for each in grown}
        case = FLAT + CARD_GROWTH
        graph, eager = ours.get((case, OURS)), ours.get((case, OURS_EAGER))
        if graph and eager:
            shape = f"implicit, {_shape(graph.many).removeprefix(FLAT)}"
            machine = f"{_card(folder)}, {_precision(graph.many)}"
            shown = (graph.backward, eager.backward, eager.peak)
            yield shape, machine, str(FEW_AND_MANY[1]), *map(_times, shown)


def _step_cells(results: Path) -> Iterator[tuple[str, ...]]:
    found = StepResults.load(results / f"{CPU_STEPS}.json")
    yield from _steps(found.rows, [], _machine(found.environment))
    for folder in _cards(results):
        eager, compiled = (
            StepResults.load(path).rows if path.exists() else []
            for path in (folder / "slate-steps.json", folder / "slate-steps-compiled.json")
        )
        yield from _steps(eager, compiled, _card(folder))


def _steps(
    eager: Sequence[StepRow], compiled: Iterable[StepRow], machine: str
) -> Iterator[tuple[str, ...]]:
    of = {(row.case, row.implementation, row.gradient): row for row in compiled if row.compiled}
    for row in eager:
        if row.implementation == BASELINE.implementation or row.gradient != "implicit":
            continue
        public = of.get((row.case, BASELINE.implementation, BASELINE.gradient))
        ours = of.get((row.case, row.implementation, row.gradient))
        yield (
            f"{row.image_size} pixels, V {row.vocab_size}, B {row.batch_size}, T {row.num_iterations}",
            f"{machine}, {row.precision}",
            _times(row.speedup),
            _times(public.step_ms_p50 / ours.step_ms_p50 if public and ours else None),
            _times(1 / row.peak_ratio if row.peak_ratio else None),
        )


def _cards(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob("*/slot-attention.json"))


def _card(folder: Path) -> str:
    return folder.name.upper()


def _machine(env: Environment) -> str:
    return f"{env['threads']} CPU threads"


def _precision(row: Row) -> str:
    return row.dtype if row.precision == "ieee" else row.precision


def _shape(row: Row) -> str:
    return (
        f"{row.case}: B {row.batch}, N {row.num_inputs}, C {row.input_size}, K {row.num_slots}, "
        f"D {row.slot_size}"
    )


def _ratio(numerator: Row | None, denominator: Row, column: str) -> float | None:
    above, below = getattr(numerator, column, None), getattr(denominator, column)
    return None if above is None or below is None else float(above / below)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
