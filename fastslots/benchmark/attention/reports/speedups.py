"""What the fused kernels bring, and what more iterations cost: ratios of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.tables import digits, environment_line, factor, known, markdown_table

FEW_AND_MANY = (1, 127)  # iterations: the implicit gradient's cost must not grow between them
FLAT = "flat-"  # begins the names of cases that compare these
OURS, OURS_EAGER = "triton + graph", "triton"  # memory is that of the eager one
# What the fused kernels are compared with, by heading: provider, and its gradient if it is not the same.
BASELINES: dict[str, tuple[str, str | None]] = {
    "unrolled, eager": ("reference", "unrolled"),
    "eager": ("reference", None),
    "graph": ("reference + graph", None),
    "compiled": ("reference + compile + graph", None),
    "control": ("torch + compile + graph", None),
    "slot-attention": ("slot-attention", "unrolled"),
}
LEGEND = (
    "Time of the usual form divided by that of the fused kernels in a CUDA graph: medians of forward and "
    "backward (implicit), or of the forward alone (no-grad). unrolled, eager: the papers' public code. "
    "eager, graph, compiled: the same gradient, keys and values made once; graph and compiled are replayed "
    "as CUDA graphs. control: the projection-free form in plain PyTorch, compiled and replayed: what is "
    "left is what the kernels add. memory: peak of unrolled, eager, divided by that of the fused kernels."
)
GROWTH_LEGEND = (
    "Cost of the implicit gradient after {many} iterations divided by that after {few}, medians of rounds "
    "in both directions."
)


@dataclass(frozen=True)
class Speedups:
    """Of `OURS` on one case at one number of iterations; None: not measured."""

    row: Row
    over: dict[str, float | None]  # by the headings of `BASELINES`
    memory: float | None  # peak of unrolled eager over that of the eager fused kernels


def speedups(results: Results) -> list[Speedups]:
    """Compares the rows of the fused kernels with those of the usual forms, case by case."""
    rows = {(row.case, row.provider, row.gradient, row.iterations): row for row in results.rows}
    return [
        _compared(row, rows)
        for row in results.rows
        if row.provider == OURS and row.gradient != "unrolled"
    ]


def _compared(row: Row, rows: dict[tuple[str, str, str, int], Row]) -> Speedups:
    def other(provider: str, gradient: str) -> Row | None:
        return rows.get((row.case, provider, gradient, row.iterations))

    over = {
        name: ratio(other(provider, gradient or row.gradient), row, "both_ms_p50")
        for name, (provider, gradient) in BASELINES.items()
    }
    memory = ratio(other("reference", "unrolled"), other(OURS_EAGER, row.gradient), "peak_bytes")
    if row.gradient == "no-grad":  # a forward alone is not to be compared with unrolled gradients
        over |= {name: None for name, (_, gradient) in BASELINES.items() if gradient}
        over["slot-attention"] = ratio(other("slot-attention", "no-grad"), row, "both_ms_p50")
        memory = None
    return Speedups(row, over, memory)


@dataclass(frozen=True)
class Growth:
    """Cost at many iterations over that at few, of one provider; None: not measured."""

    many: Row
    backward: float | None
    peak: float | None


def growth(
    results: Results, few: int = FEW_AND_MANY[0], many: int = FEW_AND_MANY[1]
) -> list[Growth]:
    """How the implicit gradient's backward and peak memory grow from few iterations to many."""
    rows = {
        (row.case, row.provider, row.iterations): row
        for row in results.rows
        if row.gradient == "implicit"
    }
    return [
        Growth(row, ratio(row, at_few, "backward_ms_p50"), ratio(row, at_few, "peak_bytes"))
        for (case, provider, iterations), row in rows.items()
        if iterations == many and (at_few := rows.get((case, provider, few))) is not None
    ]


def speedup_markdown(results: Results, iterations: Sequence[int] = (3, 7)) -> str:
    """Both as Markdown tables; growth, of the cases that measure it in many rounds.

    Args:
        results: Of any cases.
        iterations: Show speed-ups at these.
    """
    parts = []
    shown = [found for found in speedups(results) if found.row.iterations in iterations]
    if shown:
        headings = ("case", "gradient", "T", "fused ms", *BASELINES, "memory", "share of copy")
        parts += [markdown_table(headings, map(_speedup_cells, shown), num_left=2), LEGEND]
    grown = [
        found
        for found in growth(results)
        if found.many.backend == OURS_EAGER and found.many.case.startswith(FLAT)
    ]
    if grown:
        few, many = FEW_AND_MANY
        headings = ("case", "backend", "backward", "peak memory")
        table = markdown_table(headings, map(_growth_cells, grown), num_left=2)
        parts += [table, GROWTH_LEGEND.format(few=few, many=many)]
    return "\n\n".join([*parts, environment_line(results.environment)])


def ratio(numerator: Row | None, denominator: Row | None, column: str) -> float | None:
    """Of a column of two rows; None where one was not measured."""
    if numerator is None or denominator is None:
        return None
    above, below = getattr(numerator, column), getattr(denominator, column)
    return None if above is None or below is None else float(above / below)


def _speedup_cells(found: Speedups) -> tuple[str, ...]:
    return (
        found.row.case,
        found.row.gradient,
        str(found.row.iterations),
        digits(found.row.both_ms_p50),
        *map(factor, found.over.values()),
        factor(found.memory),
        known(found.row.share_of_copy, "{:.0%}".format),
    )


def _growth_cells(found: Growth) -> tuple[str, ...]:
    growths = (known(value, "{:.3f}".format) for value in (found.backward, found.peak))
    return found.many.case, found.many.provider, *growths
