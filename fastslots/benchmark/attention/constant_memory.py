"""A small table of Table 1's point: what the implicit gradient costs does not grow with iterations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastslots._extras import require
from fastslots.benchmark.attention.cases import GRADIENTS, Case
from fastslots.benchmark.attention.providers import Provider, why_not
from fastslots.benchmark.attention.reports.tables import mib, number
from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.attention.runner import run_benchmark

if TYPE_CHECKING:
    from rich.table import Table

CONSTANT_MEMORY = Case("constant memory", 8, 256, 192, 6, 192, 192, iterations=(1, 7, 63))


def measure_constant_memory(
    device: torch.device, case: Case = CONSTANT_MEMORY, time_limit_s: float = 4.0
) -> Results:
    """Measures eager `reference` and the fastest backend of the device, unrolled and implicit.

    Args:
        device: Where. On two CPU cores it takes about 10 s.
        case: What.
        time_limit_s: See `run_benchmark`.
    """
    ours = "triton" if why_not(Provider("triton", "implicit"), device) is None else "torch"
    providers = [
        Provider(backend, gradient) for backend in ("reference", ours) for gradient in GRADIENTS
    ]
    return run_benchmark([case], providers, device, repeats=5, time_limit_s=time_limit_s)


def constant_memory_table(results: Results) -> Table:
    """Bytes kept and the time of the backward against the number of iterations, as a rich table."""
    rich_table, box = require("rich.table", "benchmark"), require("rich.box", "benchmark")
    by_provider: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        by_provider.setdefault((row.backend, row.gradient), []).append(row)
    counts = sorted({row.iterations for row in results.rows})
    table: Table = rich_table.Table(
        title="What the backward costs after T iterations", box=box.SIMPLE_HEAD
    )
    table.add_column("gradient")
    table.add_column("backend")
    for what in ("kept MiB", "backward ms"):
        for count in counts:
            table.add_column(f"{what}\nT = {count}", justify="right")
    for (backend, gradient), rows in by_provider.items():
        kept = [mib(row.kept_bytes) for row in rows]
        times = [number(row.backward_ms_p50) for row in rows]
        table.add_row(gradient, backend, *kept, *times)
    return table
