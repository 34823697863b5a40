"""Results as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fastslots._extras import require
from fastslots.benchmark.attention.calls import BY_RUNNING
from fastslots.benchmark.attention.cases import Skipped
from fastslots.benchmark.attention.results import Results, Row
from fastslots.environment import Environment

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20
LEGEND = (
    "Times are medians. unrolled: T tracked iterations; implicit: T iterations without a graph, then one "
    "tracked. kept: alive after the forward beyond inputs and weights; peak: of forward and backward. "
    "speed-up: of forward and backward against eager `reference`, same gradient and T, timed in turns."
)
NO_GRAD = "no-grad: T iterations without a graph, nothing else."
GPU_LEGEND = (
    "launches / T: kernels that a further iteration of the forward launches. forward GB/s: the least "
    "bytes of the inputs that its steps can read (as they are in each, or normalised once in the type of "
    "the products), over its time; in brackets its share of the bandwidth of a copy, which inputs that fit "
    "the L2 cache may pass 100 % of. Memory of graphs is that of the same call before it was captured. "
    "J: of forward and backward, by the driver's counter."
)
OWN_PARAMETERS = (
    "slot-attention of PyPI has parameters of its own: that it runs is all that was checked."
)
Column = tuple[str, Callable[[Row], str]]


def result_tables(results: Results) -> list[Table]:
    """One rich table per case."""
    return [
        terminal_table(case_title(rows[0]), *_headings_and_cells(rows, rows), num_left=3)
        for rows in results.cases().values()
    ]


def terminal_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int
) -> Table:
    """A rich table whose first `num_left` columns are flush left, the others right."""
    rich_table, box = require("rich.table", "benchmark"), require("rich.box", "benchmark")
    table: Table = rich_table.Table(title=title, box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < num_left else "right")
    for cells in rows:
        table.add_row(*cells)
    return table


def markdown(results: Results, iterations: Sequence[int] | None = None) -> str:
    """The tables in Markdown, with what was left out and where it was measured.

    Args:
        results: What to show.
        iterations: Show only the rows of these. Default: all.
    """
    parts = []
    for rows in results.cases().values():
        shown = [row for row in rows if iterations is None or row.iterations in iterations]
        if shown:
            body = markdown_table(*_headings_and_cells(rows, shown), num_left=2)
            parts.append(f"**{case_title(rows[0])}**\n\n{body}")
    notes = [*skipped_lines(results.skipped), *gradient_lines(results.rows)]
    if notes:
        parts.append("\n".join(f"- {line}" for line in notes))
    return "\n\n".join([*parts, legend(results), environment_line(results.environment)])


def legend(results: Results) -> str:
    """What the columns and names of these results mean."""
    rows = results.rows
    parts = [
        (LEGEND, True),
        (NO_GRAD, any(row.gradient == "no-grad" for row in rows)),
        (GPU_LEGEND, any(row.copy_gb_s is not None for row in rows)),
        (OWN_PARAMETERS, any(row.check == BY_RUNNING for row in rows)),
    ]
    return " ".join(text for text, applies in parts if applies)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int) -> str:
    """A Markdown table whose first `num_left` columns are flush left, the others right."""
    rule = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def case_title(row: Row) -> str:
    """Name, shape, dtype and precision of a row's case."""
    heads = f", H {row.num_heads}" if row.num_heads > 1 else ""
    precision = {"ieee": "", "tf32": ", tf32 products", "bf16": ", bf16 autocast"}[row.precision]
    return (
        f"{row.case}: B {row.batch}, N {row.num_inputs}, C {row.input_size}, K {row.num_slots}, "
        f"D {row.slot_size}, MLP {row.mlp_hidden_size}{heads}, {row.dtype}{precision}"
    )


def environment_line(env: Environment) -> str:
    """Device, versions, commit and date in one sentence."""
    commit = "no git checkout"
    if env["commit"]:
        commit = f"commit {env['commit'][:10]}" + (" with changes" if env["dirty"] else "")
    triton = f", triton {env['triton']}" if env["triton"] else ""
    return (
        f"{env['device']}, {env['threads']} CPU threads, torch {env['torch']}{triton}, "
        f"Python {env['python']}, {commit}, {env['timestamp'][:10]}."
    )


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """One line for each provider and reason: what was not measured, and why."""
    iterations: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        what = ", ".join(filter(None, (entry.case, entry.provider, entry.gradient)))
        counts = iterations.setdefault((what, entry.reason), [])
        if entry.iterations:
            counts.append(str(entry.iterations))
    return [
        what + (f", T = {', '.join(counts)}" if counts else "") + f" not measured: {reason}"
        for (what, reason), counts in iterations.items()
    ]


def gradient_lines(rows: Iterable[Row]) -> list[str]:
    """One line for each row whose gradients are further off than rounding explains."""
    return [
        f"{row.case}, {row.provider}, {row.gradient}, T = {row.iterations}: a gradient is off by "
        f"{digits(row.gradient_error)} times what rounding explains"
        for row in rows
        if row.gradient_error is not None and row.gradient_error > 1
    ]


def mib(num_bytes: int | None) -> str:
    """MiB to three digits, or a dash."""
    return "-" if num_bytes is None else digits(num_bytes / MIB)


def digits(value: float) -> str:
    """Three digits, all before the point, and no exponent: 0.012, 1.23, 12.3, 123, 1234."""
    decimals = 3 - sum(value >= limit for limit in (1, 10, 100))
    return f"{value:.{decimals}f}"


def number(value: float | None) -> str:
    """As `digits`, or a dash."""
    return "-" if value is None else digits(value)


def _spread(row: Row) -> str:
    spread = f"({digits(row.both_ms_p20)} to {digits(row.both_ms_p80)})"
    return f"{digits(row.both_ms_p50)} {spread}"


def _bandwidth(row: Row) -> str:
    if row.forward_gb_s is None or row.copy_gb_s is None:
        return "-"
    return f"{row.forward_gb_s:.0f} ({row.forward_gb_s / row.copy_gb_s:.0%})"


_COLUMNS: tuple[Column, ...] = (
    ("backend", lambda row: row.provider),
    ("gradient", lambda row: row.gradient),
    ("T", lambda row: str(row.iterations)),
    ("forward ms", lambda row: digits(row.forward_ms_p50)),
    ("backward ms", lambda row: number(row.backward_ms_p50)),
    ("both ms (p20 to p80)", _spread),
    ("kept MiB", lambda row: mib(row.kept_bytes)),
    (
        "kept / inputs",
        lambda row: "-" if row.kept_bytes is None else f"{row.kept_bytes / row.input_bytes:.2f}",
    ),
    ("peak MiB", lambda row: mib(row.peak_bytes)),
    ("speed-up", lambda row: "-" if row.speedup is None else f"{row.speedup:.2f}x"),
)
_GPU_COLUMNS: tuple[Column, ...] = (
    ("launches / T", lambda row: number(row.launches_per_iteration)),
    ("forward GB/s", _bandwidth),
    ("J", lambda row: number(row.joules)),
)


def _headings_and_cells(
    rows: Sequence[Row], shown: Sequence[Row]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Of a case's rows that are shown; what only a GPU has stands there if one of them has it."""
    used = [column for column in _GPU_COLUMNS if any(column[1](row) != "-" for row in rows)]
    columns = (*_COLUMNS, *used)
    return tuple(name for name, _ in columns), [
        tuple(cell(r) for _, cell in columns) for r in shown
    ]
