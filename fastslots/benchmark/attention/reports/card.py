"""What `scripts/gpu_run report` keeps of a card beside times: accuracy, tests, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslots.benchmark.tables import MIB, digits, markdown_report, markdown_table

KERNELS_SHOWN = 6  # of a training step, those that take most of it
COUNTERS = {
    "µs": "gpu__time_duration.sum",
    "DRAM": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "SM": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "eligible warps": "smsp__warps_eligible.avg.per_cycle_active",
    "registers": "launch__registers_per_thread",
}
KERNELS_LEGEND = (
    "Kernels of a training step, run eagerly, by the profiler: launches in a step, the median of one, all "
    "of them together, and the share of all kernels' time."
)
COUNTERS_LEGEND = (
    "Hardware counters of every launch of one iteration, the tracked step and its backward, each with cold "
    "caches: time, share of the peak of memory and of arithmetic, active warps of those possible, warps "
    "ready to issue per cycle and scheduler."
)

ATTENTIONS = {
    "triton": "our kernels",
    "torch": "in parts, plain PyTorch",
    "scaled_dot_product_attention": "PyTorch's fused attention, its own dropout",
    "whole table": "as the public code has it",
}
ATTENTION_LEGEND = (
    "SLATE's causal self-attention with dropout, 50 images, 8 heads of 24, bfloat16: forward / with "
    "backward, within CUDA graphs, and the bytes at their peak. The first two drop the same entries, by the "
    "keys of the samples; hashes of rows and columns, made once in a training step, count with each call."
)


def accuracy_markdown(folder: Path) -> str:
    """The worst error against float64, and how the tests ended; empty if neither was run.

    Args:
        folder: Of a card.

    Raises:
        OSError: If a file is there and cannot be read.
        ValueError: If it is no JSON.
    """
    sentences = []
    if checks := _rows(folder / "smoke.json"):
        units = {row["unit"] for row in checks}
        worst = max(checks, key=lambda row: row["ratio"])
        sentences.append(
            f"Against float64, {len(units)} shapes and precisions, forward and backward: the largest error "
            f"is {digits(worst['ratio'])} of what rounding explains ({worst['tensor']}, {worst['unit']})."
        )
    if tests := _rows(folder / "unit-tests.json"):
        last = {row["unit"]: row["test"] for row in tests}
        counts = [f"{[*last.values()].count(o)} {o}" for o in ("passed", "failed", "skipped")]
        sentences.append(f"Tests that need a GPU: {', '.join(counts)}.")
    return " ".join(sentences)


def kernels_markdown(folder: Path) -> str:
    """Tables of the kernels of a training step and of their counters; empty if neither was measured.

    Args:
        folder: Of a card.

    Raises:
        OSError: If a file is there and cannot be read.
        ValueError: If it is no JSON.
    """
    parts = []
    kernels = [row for row in _rows(folder / "kernels.json") if row["unit"].endswith(" implicit")]
    if kernels:
        headings = ("shape", "kernel", "launches", "µs each", "µs in a step", "share", "registers")
        cells = [
            cell
            for unit in dict.fromkeys(row["unit"] for row in kernels)
            for cell in _kernel_cells([row for row in kernels if row["unit"] == unit])
        ]
        table = markdown_table(headings, cells, num_left=2)
        parts.append(_described(table, KERNELS_LEGEND, folder / "kernels.json"))
    if counters := _rows(folder / "counters.json"):
        cells = [_counter_cells(row) for row in counters]
        table = markdown_table(("shape", "kernel", *COUNTERS), cells, num_left=2)
        parts.append(_described(table, COUNTERS_LEGEND, folder / "counters.json"))
    return "\n\n".join(parts)


def attention_markdown(folder: Path) -> str:
    """The table of SLATE's self-attention with dropout; empty if it was not measured.

    Args:
        folder: Of a card.

    Raises:
        OSError: If the file is there and cannot be read.
        ValueError: If it is no JSON.
    """
    if not (rows := _rows(folder / "attention.json")):
        return ""
    units = sorted({row["unit"] for row in rows}, key=lambda unit: int(unit.removesuffix("px")))
    found = {(row["attention"], row["unit"]): row for row in rows}
    cells = [
        (ATTENTIONS[name], *(_attention_cell(found[name, unit]) for unit in units))
        for name in dict.fromkeys(row["attention"] for row in rows)
    ]
    table = markdown_table(("", *units), cells, num_left=1)
    return _described(table, ATTENTION_LEGEND, folder / "attention.json")


def _attention_cell(row: dict[str, Any]) -> str:
    if row["step_us"] is None:
        return "out of memory"
    times = " / ".join(digits(row[name] / 1e3) for name in ("forward_us", "step_us"))
    return f"{times} ms, {row['peak_bytes'] / MIB:.0f} MiB"


def _described(table: str, legend: str, path: Path) -> str:
    return markdown_report([table], [], legend, json.loads(path.read_text())["environment"])


def _kernel_cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    total = sum(row["us_per_step"] for row in rows)
    most = sorted(rows, key=lambda row: -row["us_per_step"])[:KERNELS_SHOWN]
    shape = rows[0]["unit"].partition(" ")[0]
    whole = (shape, "all", f"{sum(row['launches'] for row in rows):g}", "", digits(total), "", "")
    return [
        whole,
        *(
            (
                shape,
                f"`{row['kernel'][:60]}`",
                f"{row['launches']:g}",
                digits(row["us_p50"]),
                digits(row["us_per_step"]),
                f"{row['us_per_step'] / total:.0%}",
                str(row["resources"].get("registers per thread", "-")),
            )
            for row in most
        ),
    ]


def _counter_cells(row: dict[str, Any]) -> tuple[str, ...]:
    by_name = {key.partition(" ")[0]: value for key, value in row["counters"].items()}
    values = [by_name.get(name) for name in COUNTERS.values()]
    cells = [f"{value:.3g}" if isinstance(value, float) else "-" for value in values]
    return row["unit"], f"`{row['kernel'][:60]}`", *cells


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows
