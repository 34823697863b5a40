"""The ratios that README.md begins with, of the files in benchmarks/results and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastslots.benchmark.attention.reports.speedups import (
    FEW_AND_MANY,
    FLAT,
    OURS_EAGER,
    growth,
    ratio,
)
from fastslots.benchmark.attention.results import Results
from fastslots.benchmark.step.cases import BASELINE
from fastslots.benchmark.step.results import StepResults
from fastslots.benchmark.tables import factor, markdown_table
from fastslots.environment import Environment

# Of a CPU: file, case, numbers of iterations: the papers', and one and many between which costs may grow.
CPU_SHAPES = (
    ("small", "small", 7, (1, 63)),
    ("cpu-targets", "tokens-1024", 7, (1, 64)),
    ("cpu-targets", "features-16384", 3, (1, 3)),
)
CARD_SHAPES = {"slate64": 7, "slate128": 7, "clevr": 3}
ATTENTION = (
    *("slot attention, forward and backward", "machine", "T"),
    *("eager", "compiled", "unrolled", "unrolled's memory", "backward, many T : 1"),
)
STEPS = ("SLATE's training step", "machine", "eager", "compiled", "memory")
LEGEND = (
    "Slot attention: cost of the usual form, keys and values made once, divided by that of fastslots' "
    "implicit gradient; above 1, fastslots needs less. Times are medians. eager: the same gradient, both "
    "eager. compiled: under torch.compile; on a GPU it and fastslots are replayed as CUDA graphs. unrolled: "
    "the papers' public code, eager; on a GPU against fastslots in a CUDA graph; and its peak memory. Last: "
    "fastslots' own backward after 63 iterations on a CPU (64 with N 1024), 127 on a GPU, divided by that "
    "after one. SLATE: cost of its public code's form, unrolled, divided by that of fastslots, implicit: "
    "both eager, both compiled, and peak memory of both eager."
)


def headline(results: Path) -> str:
    """Two tables in Markdown, calls of slot attention and steps of SLATE, and what they mean.

    Args:
        results: Folder of the JSON files; every card has a folder in it.

    Raises:
        ValueError: If a file is no results file.
        OSError: If a file of a CPU cannot be read.
        KeyError: If a file lacks a row of fastslots.
    """
    calls = markdown_table(ATTENTION, _calls(results), num_left=2)
    steps = markdown_table(STEPS, _steps(results), num_left=2)
    return f"{calls}\n\n{steps}\n\n{LEGEND}"


def _calls(results: Path) -> Iterator[tuple[str, ...]]:
    for name, case, count, span in CPU_SHAPES:
        found = Results.load(results / f"{name}.json")
        yield _call(found, _threads(found.environment), (case, case), count, "torch", "", span)
    for folder in _cards(results):
        found = Results.load(folder / "slot-attention.json")
        for case, count in CARD_SHAPES.items():
            if case in found.cases():
                cases = case, FLAT + case
                yield _call(
                    found, folder.name.upper(), cases, count, OURS_EAGER, " + graph", FEW_AND_MANY
                )


def _call(
    found: Results,
    machine: str,
    cases: tuple[str, str],
    count: int,
    backend: str,
    graph: str,
    span: tuple[int, int],
) -> tuple[str, ...]:
    """Cells of one shape: `cases` are what is compared, and what more iterations are measured of."""
    compared, grown = cases
    rows = {
        (row.provider, row.gradient): row
        for row in found.rows
        if (row.case, row.iterations) == (compared, count)
    }
    eager, ours = rows[backend, "implicit"], rows[backend + graph, "implicit"]
    compiled = rows.get((f"reference + compile{graph}", "implicit"))
    unrolled = rows.get(("reference", "unrolled"))
    growths = [
        each.backward
        for each in growth(found, *span)
        if (each.many.case, each.many.provider) == (grown, backend + graph)
    ]
    precision = ours.dtype if ours.precision == "ieee" else ours.precision
    return (
        f"{ours.case}: B {ours.batch}, N {ours.num_inputs}, C {ours.input_size}, K {ours.num_slots}",
        f"{machine}, {precision}",
        str(count),
        factor(eager.speedup),
        factor(ratio(compiled, ours, "both_ms_p50")),
        factor(ratio(unrolled, ours, "both_ms_p50")),
        factor(ratio(unrolled, eager, "peak_bytes")),
        factor(growths[0] if growths else None),
    )


def _steps(results: Path) -> Iterator[tuple[str, ...]]:
    found = StepResults.load(results / "slate-step-cpu.json")
    yield from _steps_of(found, None, _threads(found.environment))
    for folder in _cards(results):
        eager, compiled = (
            StepResults.load(path) if path.exists() else None
            for path in (folder / "slate-steps.json", folder / "slate-steps-compiled.json")
        )
        if eager:
            yield from _steps_of(eager, compiled, folder.name.upper())


def _steps_of(
    eager: StepResults, compiled: StepResults | None, machine: str
) -> Iterator[tuple[str, ...]]:
    of = {(r.case, r.implementation): r for r in (compiled.rows if compiled else ()) if r.compiled}
    for row in eager.rows:
        if row.implementation == BASELINE.implementation or row.gradient != "implicit":
            continue
        public, ours = (of.get((row.case, name)) for name in (BASELINE.implementation, "fastslots"))
        yield (
            f"{row.image_size} pixels, V {row.vocab_size}, B {row.batch_size}, T {row.num_iterations}",
            f"{machine}, {row.precision}",
            factor(row.speedup),
            factor(public.step_ms_p50 / ours.step_ms_p50 if public and ours else None),
            factor(1 / row.peak_ratio if row.peak_ratio else None),
        )


def _cards(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob("*/slot-attention.json"))


def _threads(environment: Environment) -> str:
    return f"{environment['threads']} CPU threads"
